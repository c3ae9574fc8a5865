"""`report.html`: a run on one page that can be mailed or archived; the template is `templates/page.html.jinja`.

No script and no outside resource. Prompts are HTML text, so that every script can be read. The same held-out prompts
and seeds before, during and after training come first, then what changed most, curves with a sentence on how to read
each, monitors, image grids, and the configuration. At most `MAX_GRIDS` grids are embedded: the first, the last, and
evenly between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3o_rl.data.images import png_uri, read_image
from blip3o_rl.data.references import prompt_key
from blip3o_rl.io import read_lines, write_text
from blip3o_rl.report import charts, html
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.evaluations import Between, Comparison, PairedImage, between, compare
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import KL, REWARD, STAGES, WINDOW, moving_average, stage_seconds, values
from blip3o_rl.report.summary import Summary, facts, summarize

MAX_GRIDS = 8
MAX_BETWEEN = 3
"""Evaluations between both ends whose images are shown."""
CHOSEN = 6
"""Images that are shown as most improved, most worsened and worst."""
THUMBNAIL = 384
"""Longest side of an embedded image, px."""
HELD_OUT, EVALUATED = "reward/held_out/", "eval/reward"
MONITORS = ("monitor/", "guard/")
"""Prefixes of the monitors' metrics; runs of earlier versions have the second."""
_SINGLE = {
    KL: ("KL to the reference policy", "Mean per token. It should rise slowly; a jump means that steps are too large."),
    "actor/entropy": ("entropy of the policy", "Nats per token. A fall towards 0 means that all samples become alike."),
    "actor/grad_norm": ("gradient norm", "Single peaks are harmless; steady growth asks for a smaller learning rate."),
    "actor/pg_loss": ("policy loss", "It stays around 0 and says little; the reward is what should rise."),
    "rollout/probs_diff": (
        "sampler against trainer",
        "Mean difference of their probabilities of the sampled tokens. It should stay near 0, without a trend.",
    ),
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
class Figure:
    """The images of one held-out prompt and seed in the order of training: (when, score, data URL); of an edit behind
    its reference, which has no score."""

    prompt: str
    images: Sequence[tuple[str, float | None, str]]
    reason: str


@dataclass(frozen=True)
class Chart:
    """A chart with its labels; `legend` pairs a CSS color with a name."""

    title: str
    hint: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


def write(folder: RunFolder, summary: Summary | None = None, overlay: bool = False) -> Path:
    """Writes the page of a run folder and returns its path; a run without steps gets a page that says so.

    With `overlay` what the rewards saw is drawn over the images that changed most and the worst ones.
    """
    lines, grids, found, middle = folder.read_metrics(), folder.grids(), compare(folder), between(folder)
    some = _spread(middle, MAX_BETWEEN)
    text = html.render(
        "page.html",
        title=folder.name,
        facts=facts(summary or summarize(folder)),
        comparison=found if found and found.images else None,
        pairs=[_figure(image, some) for image in (found.shown if found else [])],
        when=["before", *(f"step {one.step}" for one in some), "after"],
        chosen={
            title: [_figure(image, reason=image.reason, overlay=overlay) for image in images]
            for title, images in _chosen(found)
        },
        held_out=[
            *_score(found, middle, lines),
            *_named(lines, EVALUATED, "Mean over the held-out images of an evaluation."),
            *_named(lines, HELD_OUT, "Never trained on. It should rise, or stay."),
        ],
        charts=_curves(lines),
        stages=_chart_of_stages(lines),
        warnings=_warnings(folder),
        monitors=[chart for prefix in MONITORS for chart in _named(lines, prefix)],
        grids=[(step, png_uri(file.read_bytes()), _prompts(folder, step)) for step, file in _spread(grids, MAX_GRIDS)],
        grid_count=len(grids),
        config=_text(folder.config),
        overrides=_text(folder.overrides).strip(),
    )
    write_text(folder.page, text)
    return folder.page


def write_several(folders: Sequence[RunFolder], file: Path) -> Path:
    """Writes a page with several runs next to each other: their facts, and every curve that two of them have."""
    names = [folder.name for folder in folders]
    columns = [dict(facts(summarize(folder))) for folder in folders]
    lines = [folder.read_metrics() for folder in folders]
    known = [{name for line in own for name in line if name != "step"} for own in lines]
    shared = {name for name in set().union(*known) if sum(name in own for own in known) > 1}
    titles = {REWARD: ("reward", f"Mean of the last {WINDOW} steps, each run on its own prompts."), **_SINGLE}
    others = sorted(name for name in shared - titles.keys() if name.startswith(("reward/", *MONITORS)))
    charts_of = []
    for name in [*(name for name in titles if name in shared), *others]:
        series = [charts.Line(run, _smooth(values(own, name))) for run, own in zip(names, lines, strict=True)]
        charts_of += _chart(*titles.get(name, (name, "")), *series)
    rows = [(what, [own.get(what, "") for own in columns]) for what in dict.fromkeys(w for own in columns for w in own)]
    title = f"{len(folders)} runs"
    write_text(file, html.render("page.html", title=title, runs=names, columns=rows, charts=charts_of))
    return file


def _figure(image: PairedImage, middle: Sequence[Between] = (), reason: str = "", overlay: bool = False) -> Figure:
    """A held-out prompt and seed before, during and after training."""
    pair, key = image.load(overlay), (image.prompt, image.seed)
    known = [(one.step, *one.images[key]) for one in middle if key in one.images and one.images[key][1].is_file()]
    shown: list[tuple[str, float | None, Any]] = [
        *([("reference", None, pair.reference)] if pair.reference is not None else []),
        ("before", pair.score_before, pair.before),
        *((f"step {step}", score, read_image(file)) for step, score, file in known),
        ("after", pair.score_after, pair.after),
    ]
    images = [(when, score, html.png_url(pixels, THUMBNAIL)) for when, score, pixels in shown]
    return Figure(pair.prompt, images, reason)


def _chosen(found: Comparison | None) -> list[tuple[str, list[PairedImage]]]:
    """The held-out images that changed most, and the worst ones; nothing if there are no others than the pairs."""
    images = [image for image in found.images if image.files] if found else []
    if not found or len(images) <= len(found.shown):
        return []
    by_gain = sorted(images, key=lambda image: image.gain)
    groups = {
        "Most improved": [image for image in by_gain[::-1][:CHOSEN] if image.gain > 0],
        "Most worsened": [image for image in by_gain[:CHOSEN] if image.gain < 0],
        "Worst after training": sorted(images, key=lambda image: image.values[1])[:CHOSEN],
    }
    return [(title, own) for title, own in groups.items() if own]


def _score(found: Comparison | None, middle: Sequence[Between], lines: Sequence[dict[str, Any]]) -> list[Chart]:
    """The held-out score before, during and after, with its intervals."""
    if not found or not found.images:
        return []
    before, after, _ = found.rows["overall"]
    last = max((line["step"] for line in lines), default=0) or 1
    points = [(0, before), *((one.step, one.score) for one in middle), (last, after)]
    known = not math.isnan(before.low)
    band = [(score.low, score.high) for _, score in points] if known else ()
    line = charts.Line("score", [(step, score.mean) for step, score in points], band=band)
    return _chart("held-out score", "Same prompts and seeds. The band is the 95 % interval over prompts.", line)


def _smooth(points: Sequence[charts.Point]) -> list[charts.Point]:
    averages = moving_average([value for _, value in points])
    return [(step, mean) for (step, _), mean in zip(points, averages, strict=True)]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _prompts(folder: RunFolder, step: int) -> list[tuple[str, float | None]]:
    """(prompt, with the names of its references, mean score or None) of a step's recorded rollouts."""
    scores: dict[str, tuple[str, list[float]]] = {}
    for line in read_lines(folder.rollout_file(step)):
        names = line.get("references", [])
        text = "   ·   ".join([line["prompt"], *names])
        _, own = scores.setdefault(prompt_key(line["prompt"], names), (text, []))
        if line.get("score") is not None:
            own.append(line["score"])
    return [(text, sum(own) / len(own) if own else None) for text, own in scores.values()]


def _chart(title: str, hint: str, *series: charts.Line) -> list[Chart]:
    """A chart of lines in a list, which is empty if there is no point."""
    svg = charts.lines(series)
    legend = tuple((charts.color(n), line.name) for n, line in enumerate(series)) if len(series) > 1 else ()
    return [Chart(title, hint, svg, legend)] if svg else []


def _curves(lines: Sequence[dict[str, Any]]) -> list[Chart]:
    """The curves of training."""
    reward = values(lines, REWARD)
    hint = "Mean of a step, on the prompts of that step. It should rise; single steps differ by the draw of prompts."
    series = charts.Line(f"last {WINDOW} steps", _smooth(reward)), charts.Line("each step", reward, faint=True)
    found = _chart("reward", hint, *series)
    component = "A component of the reward, mean of a step: which of them makes the reward rise?"
    found += [chart for chart in _named(lines, "reward/", component) if not chart.title.startswith(HELD_OUT)]
    for name, (title, hint) in _SINGLE.items():
        found += _chart(title, hint, charts.Line(title, values(lines, name)))
    return found


def _chart_of_stages(lines: Sequence[dict[str, Any]]) -> list[Chart]:
    timed = [(line["step"], seconds) for line in lines if (seconds := stage_seconds(line))]
    stages = [stage for stage in (*STAGES, "other") if any(stage in seconds for _, seconds in timed)]
    svg = charts.stacked([charts.Line(stage, [(step, s.get(stage, 0.0)) for step, s in timed]) for stage in stages])
    legend = tuple((charts.color(number), stage) for number, stage in enumerate(stages))
    return [Chart("time of a step", "Seconds by stage.", svg, legend)] if svg else []


def _named(lines: Sequence[dict[str, Any]], prefix: str, hint: str = "") -> list[Chart]:
    """One chart for each metric whose name starts with the prefix."""
    names = sorted({name for line in lines for name in line if name.startswith(prefix)})
    return [chart for name in names for chart in _chart(name, hint, charts.Line(name, values(lines, name)))]


def _warnings(folder: RunFolder) -> list[tuple[int, str, str]]:
    """(step, text, image) of each warning; the image as a data URL for the last of a statistic, else empty."""
    found = warning_log.read(folder)
    last = {warning["statistic"]: warning for warning in found}
    shown = [w for w in last.values() if w["image"] and w["image"].is_file()]
    return [(w["step"], w["text"], png_uri(w["image"].read_bytes()) if w in shown else "") for w in found]


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` items, first and last among them, evenly spread."""
    if len(items) <= most:
        return items
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]
