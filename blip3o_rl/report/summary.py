"""The end of a run in one table: did the score rise, what did it cost, and where is everything.

Before and after come from the held-out evaluations where the run made them with the same settings, prompts and seeds;
otherwise from the moving average of the training reward, and the summary says so.
"""

from __future__ import annotations

import io
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from rich.text import Text

from blip3o_rl.io import whole_characters, write_json, write_text
from blip3o_rl.report import checkpoints
from blip3o_rl.report.evaluations import compare
from blip3o_rl.report.gallery import save_pairs
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import KL, REWARD, STEP_SECONDS, WINDOW, duration, medians, moving_average, values


@dataclass
class Summary:
    """What `summarize` found; None where the run has no such number.

    `measured_by` says what `before` and `after` are, `unlike` why the two evaluations were not compared.
    """

    run: str
    steps: int
    before: float | None = None
    after: float | None = None
    measured_by: str = ""
    unlike: str = ""
    reward_before: float | None = None
    reward_after: float | None = None
    kl: float | None = None
    distinct: float | None = None
    step_s: float | None = None
    total_s: float | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    checkpoint: str | None = None
    best: str | None = None
    """The checkpoint with the best held-out score, of those that were evaluated."""
    best_score: float | None = None
    places: dict[str, str] = field(default_factory=dict)

    @property
    def gain(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


def summarize(folder: RunFolder) -> Summary:
    """Reads a run folder; a run that made no step yields a summary of 0 steps."""
    lines = folder.read_metrics()
    rewards, seconds, kl, distinct = (
        [value for _, value in values(lines, name)] for name in (REWARD, STEP_SECONDS, KL, "rollout/distinct")
    )
    saved = folder.checkpoint_steps()
    summary = Summary(
        run=folder.name,
        steps=max((step for step, _ in [*values(lines, STEP_SECONDS), *saved]), default=0),
        kl=kl[-1] if kl else None,
        distinct=distinct[-1] if distinct else None,
        step_s=median(seconds) if seconds else None,
        total_s=sum(seconds) if seconds else None,
        stage_s={stage: round(value, 3) for stage, value in medians(lines).items()},
        checkpoint=str(saved[-1][1]) if saved else None,
        places=_places(folder),
    )
    if best := checkpoints.best(folder.checkpoints):
        summary.best, summary.best_score = str(best), checkpoints.best_score(best)
    found = compare(folder)
    summary.unlike = found.difference if found else ""
    if found and found.score:
        summary.before, summary.after = found.score
        summary.reward_before, summary.reward_after = found.reward or (None, None)
        summary.measured_by = "held-out prompts, fixed seeds"
    elif rewards:
        window = max(1, min(WINDOW, len(rewards) // 2))
        averages = moving_average(rewards, window)
        summary.before, summary.after = averages[window - 1], averages[-1]
        summary.measured_by = f"the training reward, first and last {window} steps"
    return summary


def facts(summary: Summary) -> list[tuple[str, str]]:
    """(what, text) of every number of the summary, for the table and the page."""
    found = []
    if summary.before is not None and summary.after is not None:
        change = f"{summary.before:.3f} -> {summary.after:.3f}  ({summary.gain:+.3f})"
        found += [("score", change), ("measured on", summary.measured_by)]
    if summary.unlike:
        found.append(("held-out", f"not compared, the evaluations are not alike: {summary.unlike}"))
    if summary.reward_before is not None and summary.reward_after is not None:
        found.append(("reward", f"{summary.reward_before:.3f} -> {summary.reward_after:.3f} on the same images"))
    if summary.best and summary.best_score is not None:
        step = checkpoints.step_of(Path(summary.best))
        found.append(("best", f"{summary.best_score:.3f} at step {step}, of the checkpoints that were evaluated"))
    found.append(("steps", str(summary.steps)))
    if summary.total_s is not None and summary.step_s is not None:
        per_step = f"{summary.step_s:.1f} s per step (median)"
        found.append(("time", f"{duration(summary.total_s)} of training, {per_step}"))
    if summary.stage_s:
        stages = [f"{stage} {seconds:.1f} s" for stage, seconds in summary.stage_s.items() if stage != "eval"]
        found.append(("time of a step", "  ".join(stages)))
        if "eval" in summary.stage_s:
            found.append(("an evaluation", f"{summary.stage_s['eval']:.1f} s (median), not in the time of training"))
    if summary.kl is not None:
        found.append(("KL", f"{summary.kl:.4f} to the reference policy, last step, mean per token"))
    if summary.distinct is not None:
        found.append(("distinct", f"{summary.distinct:.0%} of the last step's images"))
    return found


def table(summary: Summary) -> Table:
    """The summary as a rich table: its numbers, and where everything is."""
    title = Text(f"run {whole_characters(summary.run)}", style="bold")
    rows = Table(title=title, title_justify="left", show_header=False, box=None)
    rows.add_column(style="dim", no_wrap=True)
    rows.add_column(overflow="fold")
    places = list(summary.places.items())
    if summary.checkpoint:
        places.append(("checkpoint", summary.checkpoint))
    if summary.best:
        places.append(("best checkpoint", summary.best))
    if "global_step_" in (chosen := summary.best or summary.checkpoint or ""):  # sft writes its model folder itself
        places.append(("", f"make a model folder of it: blip3o-rl export {shlex.quote(chosen)} my_model"))
    for what, text in [*facts(summary), *places]:
        rows.add_row(what, Text(whole_characters(text), style="bold" if what == "score" else ""))
    return rows


def write(folder: RunFolder, summary: Summary | None = None) -> Summary:
    """Writes summary.json, summary.txt and, where there are images of both evaluations, before_after.png."""
    found = compare(folder)
    folder.before_after.unlink(missing_ok=True)
    if found and found.pairs:
        save_pairs(folder.before_after, found.pairs)
    summary = summary or summarize(folder)
    gain = None if summary.gain is None else round(summary.gain, 6)
    write_json(folder.summary_json, {**asdict(summary), "gain": gain})
    console = Console(width=120, record=True, file=io.StringIO(), legacy_windows=False)
    console.print(table(summary))
    write_text(folder.summary_text, "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n")
    return summary


def _places(folder: RunFolder) -> dict[str, str]:
    """Name -> path of what the run left, as far as it is there."""
    candidates = {
        "folder": folder.path,
        "before/after": folder.before_after,
        "images": folder.images,
        "metrics": folder.metrics,
        "logs": folder.logs,
    }
    return {name: str(path) for name, path in candidates.items() if path.exists()}
