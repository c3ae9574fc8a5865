"""`report.html`: a run on one page that can be mailed or archived; the template is `templates/page.html.jinja`.

No script and no outside resource. Prompts are HTML text, so that every script can be read. The same held-out prompts
and seeds before and after training come first, then curves with a sentence on how to read each, monitors, image grids,
and the configuration. At most `MAX_GRIDS` grids are embedded (the first, the last, and evenly between).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.io import read_lines, write_text
from blip3o_rl.report import charts, html
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.evaluations import compare
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import KL, REWARD, STAGES, WINDOW, moving_average, stage_seconds, values
from blip3o_rl.report.summary import Summary, facts, summarize

MAX_GRIDS = 8
THUMBNAIL = 384
"""Longest side of an embedded image, px."""
HELD_OUT = "reward/held_out/"
MONITORS = ("monitor/", "guard/")
"""Prefixes of the monitors' metrics; runs of earlier versions have the second."""
_SINGLE = {
    KL: ("KL to the reference policy", "Mean per token. It should rise slowly; a jump means that steps are too large."),
    "actor/entropy": ("entropy of the policy", "Nats per token. A fall towards 0 means that all samples become alike."),
    "actor/grad_norm": ("gradient norm", "Single peaks are harmless; steady growth asks for a smaller learning rate."),
    "actor/pg_loss": ("policy loss", "It stays around 0 and says little; the reward is what should rise."),
    "sft/loss": ("loss", "Tokens and flow together. It should fall, and flatten when more steps bring little."),
    "sft/tokens": ("cross entropy of the image tokens", "Nats. What the policy learns."),
    "sft/flow": ("flow-matching error", "What the renderer learns; noisy, so look at the trend."),
    "rollout/distinct": ("distinct images", "Share of the rollouts. A collapse of the policy shows here first."),
    "rollout/failed": ("failed rewards", "Share of the rollouts without a score; they are left out of their group."),
    "rollout/flat_groups": (
        "groups without signal",
        "Share of the groups whose scores are all equal: nothing to learn.",
    ),
}


@dataclass(frozen=True)
class Chart:
    """A chart with its labels; `legend` pairs a CSS colour with a name."""

    title: str
    hint: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


def write(folder: RunFolder, summary: Summary | None = None) -> Path:
    """Writes the page of a run folder and returns its path; a run without steps gets a page that says so."""
    lines = folder.read_metrics()
    grids = folder.grids()
    found = compare(folder)
    pairs = found.pairs if found else []
    text = html.render(
        "page.html",
        run=folder.name,
        facts=facts(summary or summarize(folder)),
        pairs=[(pair, *(html.png_url(image, THUMBNAIL) for image in (pair.before, pair.after))) for pair in pairs],
        charts=_curves(lines),
        stages=_chart_of_stages(lines),
        warnings=_warnings(folder),
        held_out=_named(lines, HELD_OUT),
        monitors=[chart for prefix in MONITORS for chart in _named(lines, prefix)],
        grids=[
            (step, html.file_url(file.read_bytes()), _prompts(folder, step)) for step, file in _spread(grids, MAX_GRIDS)
        ],
        grid_count=len(grids),
        config=_text(folder.config),
        overrides=_text(folder.overrides).strip(),
    )
    write_text(folder.page, text)
    return folder.page


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _prompts(folder: RunFolder, step: int) -> list[tuple[str, float | None]]:
    """(prompt, mean score or None) of a step's recorded rollouts."""
    scores: dict[str, list[float]] = {}
    for line in read_lines(folder.rollout_file(step)):
        own = scores.setdefault(line["prompt"], [])
        if line.get("score") is not None:
            own.append(line["score"])
    return [(prompt, sum(own) / len(own) if own else None) for prompt, own in scores.items()]


def _chart(title: str, hint: str, *series: charts.Line) -> list[Chart]:
    """A chart of lines in a list, which is empty if there is no point."""
    svg = charts.lines(series)
    legend = tuple((charts.color(n), line.name) for n, line in enumerate(series)) if len(series) > 1 else ()
    return [Chart(title, hint, svg, legend)] if svg else []


def _curves(lines: Sequence[dict[str, Any]]) -> list[Chart]:
    """The curves of training."""
    reward = values(lines, REWARD)
    average = moving_average([value for _, value in reward])
    smooth = [(step, mean) for (step, _), mean in zip(reward, average, strict=True)]
    hint = "Mean of a step, on the prompts of that step. It should rise; single steps differ by the draw of prompts."
    series = charts.Line(f"last {WINDOW} steps", smooth), charts.Line("each step", reward, faint=True)
    found = _chart("reward", hint, *series)
    found += [chart for chart in _named(lines, "reward/") if not chart.title.startswith(HELD_OUT)]
    for name, (title, hint) in _SINGLE.items():
        found += _chart(title, hint, charts.Line(title, values(lines, name)))
    return found


def _chart_of_stages(lines: Sequence[dict[str, Any]]) -> list[Chart]:
    timed = [(line["step"], seconds) for line in lines if (seconds := stage_seconds(line))]
    stages = [stage for stage in (*STAGES, "other") if any(stage in seconds for _, seconds in timed)]
    svg = charts.stacked([charts.Line(stage, [(step, s.get(stage, 0.0)) for step, s in timed]) for stage in stages])
    legend = tuple((charts.color(number), stage) for number, stage in enumerate(stages))
    return [Chart("time of a step", "Seconds by stage.", svg, legend)] if svg else []


def _named(lines: Sequence[dict[str, Any]], prefix: str) -> list[Chart]:
    """One chart for each metric whose name starts with the prefix."""
    names = sorted({name for line in lines for name in line if name.startswith(prefix)})
    return [chart for name in names for chart in _chart(name, "", charts.Line(name, values(lines, name)))]


def _warnings(folder: RunFolder) -> list[tuple[int, str, str]]:
    """(step, text, image) of each warning; the image as a data URL for the last of a statistic, else empty."""
    found = warning_log.read(folder)
    last = {warning["statistic"]: warning for warning in found}
    shown = [w for w in last.values() if w["image"].is_file()]
    return [(w["step"], w["text"], html.file_url(w["image"].read_bytes()) if w in shown else "") for w in found]


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` items, first and last among them, evenly spread."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
