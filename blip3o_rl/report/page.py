"""`report.html`: a run on one page that can be mailed or archived: curves, pictures and configuration in one file.

No script and no outside resource. At most `MAX_GRIDS` image grids are embedded (the first, the last, and evenly
between); the page says how many there are in all. Warnings of the guards come before everything else: all of them as
text, the last of each statistic with its picture.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment

from blip3o_rl.io import write_text
from blip3o_rl.report import charts
from blip3o_rl.report import warnings as warning_log
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import KL, REWARD, STAGES, WINDOW, duration, moving_average, stage_seconds, values
from blip3o_rl.report.summary import Summary, summarize

MAX_GRIDS = 8
HELD_OUT = "reward/held_out/"
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
    """A chart with its words; `legend` pairs a CSS class with a name."""

    title: str
    hint: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


def write(folder: RunFolder, summary: Summary | None = None) -> Path:
    """Writes the page of a run folder and returns its path; a run without steps gets a page that says so."""
    lines = folder.read_metrics()
    grids = folder.grids()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(_TEMPLATE)
    text = page.render(
        run=folder.name,
        summary=_facts(summary or summarize(folder)),
        charts=_charts(lines),
        warnings=_warnings(folder),
        held_out=_named(lines, HELD_OUT),
        guards=_named(lines, "guard/"),
        grids=[(step, _data_url(file)) for step, file in _spread(grids, MAX_GRIDS)],
        grid_count=len(grids),
        config=folder.config.read_text(encoding="utf-8") if folder.config.is_file() else "",
        overrides=folder.overrides.read_text(encoding="utf-8").strip() if folder.overrides.is_file() else "",
    )
    write_text(folder.page, text)
    return folder.page


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
    drawn = [(name, charts.lines([charts.Line(name, values(lines, name))])) for name in names]
    return [Chart(name, "", svg) for name, svg in drawn if svg]


def _warnings(folder: RunFolder) -> list[tuple[int, str, str]]:
    """(step, text, picture) of each warning; the picture as a data URL for the last of a statistic, else empty."""
    found = warning_log.read(folder)
    last = {warning["statistic"]: number for number, warning in enumerate(found)}
    return [
        (w["step"], w["text"], _data_url(w["picture"]) if last[w["statistic"]] == n and w["picture"].is_file() else "")
        for n, w in enumerate(found)
    ]


def _facts(summary: Summary) -> list[tuple[str, str]]:
    """The tiles at the top: (what, number)."""
    facts = []
    if summary.gain is not None:
        facts.append(
            (f"score, {summary.measured_by}", f"{summary.before:.3f} → {summary.after:.3f} ({summary.gain:+.3f})")
        )
    facts.append(("steps", str(summary.steps)))
    if summary.step_s is not None and summary.total_s is not None:
        facts.append(("a step (median)", duration(summary.step_s)))
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


def _data_url(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ run }} · blip3o-rl</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1c1e; --quiet: #6e6e76; --rule: #e2e2e6; --tile: #f6f6f8;
  --s0: #1f6feb; --s1: #d9822b; --s2: #2a9d63; --s3: #b5479b; --s4: #8a6d3b; --s5: #c23b3b; --s6: #8e8e96; }
@media (prefers-color-scheme: dark) { :root { --paper: #17171a; --ink: #ececf0; --quiet: #9a9aa3; --rule: #33333a;
  --tile: #212126; --s0: #5b9bff; --s1: #f0a050; --s2: #4cc38a; --s3: #d977c0; --s4: #c0a060; --s5: #ef6b6b; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1060px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .8rem; }
.quiet { color: var(--quiet); font-size: .86rem; font-weight: normal; }
.facts { display: flex; flex-wrap: wrap; gap: .7rem; }
.facts div { background: var(--tile); border-radius: 8px; padding: .6rem .9rem; }
.facts b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 1.2rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .92rem; }
svg { width: 100%; height: auto; }
.axis { stroke: var(--quiet); } .gridline { stroke: var(--rule); } .label { fill: var(--quiet); font-size: 11px; }
.line, .faint { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
.faint { stroke-width: 1; opacity: .55; } .dot, .area { fill: currentColor; } .area { opacity: .85; }
{% for n in range(7) %}.s{{ n }} { color: var(--s{{ n }}); } {% endfor %}

.legend { font-size: .82rem; display: flex; flex-wrap: wrap; gap: 0 .9rem; color: var(--quiet); }
.legend i { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .35em;
  background: currentColor; }
.warning { border-left: 4px solid var(--s5); padding-left: .8rem; margin: .8rem 0; }
.grids img, .warning img { width: 100%; border: 1px solid var(--rule); border-radius: 6px; margin: .3rem 0 1.2rem; }
pre { background: var(--tile); border-radius: 8px; padding: .9rem; overflow: auto; max-height: 32rem;
  font-size: .8rem; }
</style>
</head>
<body>
<h1>{{ run }}</h1>
<div class="facts">
{% for what, number in summary %}<div><span class="quiet">{{ what }}</span><b>{{ number }}</b></div>
{% endfor %}
</div>
{% if warnings %}
<h2>Warnings <span class="quiet">statistics that left their baseline, the mean of the first steps</span></h2>
{% for step, text, url in warnings %}
<div class="warning">
step {{ step }}: {{ text }}
{% if url %}<img src="{{ url }}" alt="pictures of step {{ step }}, the furthest first">{% endif %}
</div>
{% endfor %}
{% endif %}
{% macro figures(list) %}
<div class="charts">
{% for chart in list %}
<figure>
<figcaption>{{ chart.title }} <span class="quiet">{{ chart.hint }}</span></figcaption>
{{ chart.svg | safe }}
{% if chart.legend %}
<div class="legend">
{% for style, name in chart.legend %}<span><i class="{{ style }}"></i>{{ name }}</span>
{% endfor %}
</div>
{% endif %}
</figure>
{% endfor %}
</div>
{% endmacro %}
<h2>Curves <span class="quiet">over the steps</span></h2>
{% if charts %}{{ figures(charts) }}{% else %}<p class="quiet">This run has made no step yet.</p>{% endif %}
{% if held_out %}
<h2>Held-out rewards <span class="quiet">logged, never trained on</span></h2>
{{ figures(held_out) }}
{% endif %}
{% if guards %}
<h2>Guards <span class="quiet">statistics of the images that show a hacked reward</span></h2>
{{ figures(guards) }}
{% endif %}
{% if grids %}
<h2>Images <span class="quiet">{{ grids | length }} of {{ grid_count }} grids</span></h2>
<div class="grids">
{% for step, url in grids %}
<div class="quiet">step {{ step }}</div>
<img src="{{ url }}" alt="image grid of step {{ step }}">
{% endfor %}
</div>
{% endif %}
{% if overrides %}<h2>Command</h2><pre>{{ overrides }}</pre>{% endif %}
{% if config %}
<h2>Configuration</h2>
<details><summary class="quiet">the resolved configuration</summary><pre>{{ config }}</pre></details>
{% endif %}
</body>
</html>
"""
