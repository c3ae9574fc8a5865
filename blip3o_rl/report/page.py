"""`report.html`: a run on one page that can be mailed or archived: before and after, curves, images, configuration.

No script and no outside resource; the template is `templates/page.html.jinja`. Prompts are HTML text, so that every
script can be read. At most `MAX_GRIDS` image grids are embedded (the first, the last, and evenly between); the page
says how many there are in all. Warnings of the monitors come before everything else: all of them as text, the last of
each statistic with its image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.io import read_lines, write_text
from blip3o_rl.report import charts, html
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.evaluations import compare
from blip3o_rl.report.gallery import file_url, png_url
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import KL, REWARD, STAGES, WINDOW, duration, moving_average, stage_seconds, values
from blip3o_rl.report.summary import Summary, summarize

MAX_GRIDS = 8
HELD_OUT = "reward/held_out/"
MONITORS = ("monitor/", "guard/")
"""Prefixes of the monitors' metrics; runs of earlier versions have the second."""
_SINGLE = {
    KL: ("KL to the reference policy", "mean per token"),
    "actor/entropy": ("entropy of the policy", "nats, mean per token"),
    "actor/grad_norm": ("gradient norm", ""),
    "actor/pg_loss": ("policy loss", ""),
    "sft/loss": ("loss", "tokens + flow"),
    "sft/tokens": ("cross entropy of the image tokens", "nats"),
    "sft/flow": ("flow-matching error", ""),
    "rollout/distinct": ("distinct images", "share of the rollouts; a collapse shows here"),
    "rollout/failed": ("failed rewards", "share of the rollouts"),
    "rollout/flat_groups": ("groups without signal", "share of the groups whose scores are all equal"),
}


@dataclass(frozen=True)
class Chart:
    """A chart with its labels; `legend` pairs a CSS class with a name."""

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
        summary=_facts(summary or summarize(folder)),
        unlike=found.difference if found else "",
        pairs=[(pair, png_url(pair.before), png_url(pair.after)) for pair in pairs],
        charts=_charts(lines),
        warnings=_warnings(folder),
        held_out=_named(lines, HELD_OUT),
        monitors=[chart for prefix in MONITORS for chart in _named(lines, prefix)],
        grids=[(step, file_url(file.read_bytes()), _prompts(folder, step)) for step, file in _spread(grids, MAX_GRIDS)],
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


def _charts(lines: list[dict[str, Any]]) -> list[Chart]:
    """The run's charts, those without a point left out."""
    reward = values(lines, REWARD)
    average = moving_average([value for _, value in reward])
    smooth = [(step, mean) for (step, _), mean in zip(reward, average, strict=True)]
    found = [
        Chart(
            "reward",
            f"mean of a step, and of the last {WINDOW} steps",
            charts.lines([charts.Line(f"last {WINDOW} steps", smooth), charts.Line("each step", reward, faint=True)]),
            (("s0", f"last {WINDOW} steps"), ("s1", "each step")),
        )
    ]
    found += [chart for chart in _named(lines, "reward/") if not chart.title.startswith(HELD_OUT)]
    for name, (title, hint) in _SINGLE.items():
        found.append(Chart(title, hint, charts.lines([charts.Line(title, values(lines, name))])))
    timed = [(line["step"], stage_seconds(line)) for line in lines]
    stages = [stage for stage in (*STAGES, "other") if any(stage in seconds for _, seconds in timed)]
    layers = [charts.Line(stage, [(step, s.get(stage, 0.0)) for step, s in timed if s]) for stage in stages]
    legend = tuple((f"s{number}", stage) for number, stage in enumerate(stages))
    found.append(Chart("time of a step", "seconds by stage", charts.stacked(layers), legend))
    return [chart for chart in found if chart.svg]


def _named(lines: list[dict[str, Any]], prefix: str) -> list[Chart]:
    """One chart for each metric whose name starts with the prefix."""
    names = sorted({name for line in lines for name in line if name.startswith(prefix)})
    made = [(name, charts.lines([charts.Line(name, values(lines, name))])) for name in names]
    return [Chart(name, "", svg) for name, svg in made if svg]


def _warnings(folder: RunFolder) -> list[tuple[int, str, str]]:
    """(step, text, image) of each warning; the image as a data URL for the last of a statistic, else empty."""
    found = warning_log.read(folder)
    last = {warning["statistic"]: warning for warning in found}
    shown = [w for w in last.values() if w["image"].is_file()]
    return [(w["step"], w["text"], file_url(w["image"].read_bytes()) if w in shown else "") for w in found]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """The tiles at the top: (what, number)."""
    facts = []
    if summary.gain is not None:
        facts.append(
            (f"score, {summary.measured_by}", f"{summary.before:.3f} → {summary.after:.3f} ({summary.gain:+.3f})")
        )
    facts.append(("steps", str(summary.steps)))
    if summary.step_s is not None and summary.total_s is not None:
        facts.append(("step (median)", duration(summary.step_s)))
        facts.append(("training", duration(summary.total_s)))
    if summary.kl is not None:
        facts.append(("KL at the end", f"{summary.kl:.4f}"))
    if summary.distinct is not None:
        facts.append(("distinct images", f"{summary.distinct:.0%}"))
    return facts


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` items, first and last among them, evenly spread."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
