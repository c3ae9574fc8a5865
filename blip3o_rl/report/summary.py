"""The end of a run in one table: did the score rise, what did it cost, and where is everything.

Before and after come from the held-out evaluations (eval_before.json, eval_after.json: same prompts,
same seeds) where the run made them; otherwise from the moving average of the training reward, and the summary says so.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3o_rl.io import read_json, write_json, write_text
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import KL, REWARD, STEP_SECONDS, WINDOW, duration, medians, moving_average, values

SCORE, REWARD_OF_RUN = "overall", "reward"
"""Keys of an evaluation file: its suite's score, and the value of the run's own rewards (null where they failed)."""


@dataclass
class Summary:
    """What `summarize` found; None where the run has no such number."""

    run: str
    steps: int
    before: float | None = None
    after: float | None = None
    measured_by: str = ""
    reward_before: float | None = None
    reward_after: float | None = None
    kl: float | None = None
    distinct: float | None = None
    step_s: float | None = None
    total_s: float | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    places: dict[str, str] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


def summarize(folder: RunFolder) -> Summary:
    """Reads a run folder; a run that made no step yields a summary of 0 steps."""
    lines = folder.read_metrics()
    rewards = [value for _, value in values(lines, REWARD)]
    seconds = [value for _, value in values(lines, STEP_SECONDS)]
    kl = values(lines, KL)
    distinct = values(lines, "rollout/distinct")
    stage_s = medians(lines)
    summary = Summary(
        run=folder.name,
        steps=max((line["step"] for line in lines), default=0),
        kl=kl[-1][1] if kl else None,
        distinct=distinct[-1][1] if distinct else None,
        step_s=median(seconds) if seconds else None,
        total_s=sum(seconds) if seconds else None,
        stage_s={stage: round(value, 3) for stage, value in stage_s.items()},
        places=_places(folder),
    )
    before, after = _evaluation(folder.eval_before), _evaluation(folder.eval_after)
    if SCORE in before and SCORE in after:
        summary.before, summary.after = before[SCORE], after[SCORE]
        summary.reward_before, summary.reward_after = before.get(REWARD_OF_RUN), after.get(REWARD_OF_RUN)
        summary.measured_by = "held-out prompts, fixed seeds"
    elif rewards:
        averages = moving_average(rewards)
        summary.before, summary.after = averages[min(WINDOW, len(averages)) - 1], averages[-1]
        summary.measured_by = f"the training reward, first and last {min(WINDOW, len(averages))} steps"
    checkpoints = folder.checkpoint_steps()
    if checkpoints:
        summary.checkpoint = str(checkpoints[-1][1])
    return summary


def table(summary: Summary) -> Table:
    """The summary as a rich table."""
    rows = Table(title=f"run {summary.run}", title_justify="left", title_style="bold", show_header=False, box=None)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    if summary.before is not None and summary.after is not None and summary.gain is not None:
        style = "bold green" if summary.gain > 0 else "bold red"
        change = Text.assemble(f"{summary.before:.3f} -> {summary.after:.3f}  ", (f"({summary.gain:+.3f})", style))
        rows.add_row("score", change)
        rows.add_row("", f"measured on {summary.measured_by}")
    if summary.reward_before is not None and summary.reward_after is not None:
        rows.add_row("reward", f"{summary.reward_before:.3f} -> {summary.reward_after:.3f} on the same images")
    rows.add_row("steps", str(summary.steps))
    if summary.total_s is not None and summary.step_s is not None:
        rows.add_row("time", f"{duration(summary.total_s)} of training, {summary.step_s:.1f} s a step (median)")
    if summary.stage_s:
        rows.add_row("", "  ".join(f"{stage} {seconds:.1f} s" for stage, seconds in summary.stage_s.items()))
    if summary.kl is not None:
        rows.add_row("KL", f"{summary.kl:.4f} to the reference policy, last step, mean per token")
    if summary.distinct is not None:
        rows.add_row("distinct", f"{summary.distinct:.0%} of the last step's images")
    for name, place in summary.places.items():
        rows.add_row(name, place)
    if summary.checkpoint:
        rows.add_row("checkpoint", summary.checkpoint)
        rows.add_row("", f"make a model folder of it: blip3o-rl export {summary.checkpoint} my_model")
    return rows


def write(folder: RunFolder, summary: Summary | None = None) -> Summary:
    """Writes summary.json and summary.txt, and returns the summary."""
    summary = summary or summarize(folder)
    gain = None if summary.gain is None else round(summary.gain, 6)
    write_json(folder.summary_json, {**asdict(summary), "gain": gain})
    console = Console(width=120, record=True, file=io.StringIO(), legacy_windows=False)
    console.print(table(summary))
    write_text(folder.summary_text, "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n")
    return summary


def _evaluation(file: Path) -> dict[str, float]:
    """The top-level numbers of an evaluation file; empty if there is no such file."""
    result = read_json(file) if file.is_file() else {}
    return {key: float(value) for key, value in result.items() if isinstance(value, int | float)}


def _places(folder: RunFolder) -> dict[str, str]:
    """Name -> path of what the run left, as far as it is there."""
    candidates = {"folder": folder.path, "images": folder.images, "metrics": folder.metrics, "logs": folder.logs}
    return {name: str(path) for name, path in candidates.items() if path.exists()}
