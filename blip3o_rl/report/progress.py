"""What a person sees while a run goes on: a live panel in a terminal, one plain line per step everywhere else.

    with progress(total_steps, title) as shown:
        shown.phase("starting Ray")
        shown.update({"step": 1, "critic/score/mean": 0.41, "timing_s/step": 11.2, ...})

The panel needs a terminal; CI and job logs get lines that can be read and searched afterwards. Both show the same:
step, reward (last and moving average), KL, and the seconds of a step by stage. The time left is the median of the last
steps' seconds, because the first step is slower than the rest.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from blip3o_rl.io import whole_characters
from blip3o_rl.report.series import (
    KL,
    REWARD,
    ROLLOUT_PARTS,
    STEP_SECONDS,
    WINDOW,
    duration,
    moving_average,
    sparkline,
    stage_seconds,
)

Clock = Callable[[], float]


class Progress:
    """The numbers behind both forms, and what a run reports to them."""

    def __init__(
        self, total_steps: int, title: str = "", console: Console | None = None, clock: Clock = time.monotonic
    ):
        self.total, self.title, self.clock = total_steps, title, clock
        self.console = console or Console()
        self.begun = self.phase_begun = clock()
        self.text, self.step = "", 0
        self.rewards: list[float] = []
        self.seconds: list[float] = []
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Leaves the terminal as it was."""

    def phase(self, text: str) -> None:
        """What is going on before or between the steps, for example "loading the model"; "" for nothing."""
        if text != self.text:
            self.text, self.phase_begun = text, self.clock()

    def note(self, text: str) -> None:
        """A line that stays, for example a warning."""
        self.console.print(Text(whole_characters(text)), soft_wrap=True)

    def update(self, metrics: Mapping[str, Any]) -> bool:
        """One flat line of metrics with its "step"; False if it is no training step (evaluations have no step time and
        no reward)."""
        reward, seconds = metrics.get(REWARD), metrics.get(STEP_SECONDS)
        if reward is None and seconds is None:
            return False
        self.step = int(metrics["step"])
        self.last = dict(metrics)
        if reward is not None:
            self.rewards.append(float(reward))
        if seconds is not None:
            self.seconds.append(float(seconds))
        return True

    @property
    def average(self) -> float | None:
        return moving_average(self.rewards)[-1] if self.rewards else None

    @property
    def left_s(self) -> float:
        """Seconds left; 0 before the first step."""
        return max(0, self.total - self.step) * median(self.seconds[-WINDOW:]) if self.seconds else 0.0

    def elapsed(self) -> float:
        return self.clock() - self.begun


class PlainProgress(Progress):
    """One line per step, for output that is no terminal."""

    def __enter__(self) -> Self:
        if self.title:
            self.note(self.title)
        return self

    def phase(self, text: str) -> None:
        if text and text != self.text:
            self.note(f"[{duration(self.elapsed())}] {text}")
        super().phase(text)

    def update(self, metrics: Mapping[str, Any]) -> bool:
        if not super().update(metrics):
            return False
        parts = [f"step {self.step}/{self.total}"]
        if self.rewards:
            parts.append(f"reward {self.rewards[-1]:.3f} (mean of last {WINDOW}: {self.average:.3f})")
        if metrics.get(KL) is not None:
            parts.append(f"KL {metrics[KL]:.4f}")
        if metrics.get("rollout/failed"):
            parts.append(f"failed {metrics['rollout/failed']:.1%}")
        seconds = metrics.get(STEP_SECONDS)
        if seconds is not None:
            split = ", ".join(f"{stage} {s:.1f}" for stage, s in stage_seconds(metrics).items() if s >= 0.05)
            parts.append(f"{seconds:.1f} s" + (f" ({split})" if split else ""))
        if self.left_s:
            parts.append(f"left {duration(self.left_s)}")
        self.note("  ".join(parts))
        return True


class LiveProgress(Progress):
    """A panel that redraws itself."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.text = "starting"
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=self.console, get_renderable=self._panel, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.text = "stopped" if kind else ""
        self._live.stop()

    def _panel(self) -> RenderableType:
        rows: list[RenderableType] = []
        if self.step:
            rows += [self._bar(), self._numbers(), *self._stages()]
        if self.text:
            waiting = duration(self.clock() - self.phase_begun)
            self._spinner.update(text=Text.assemble((f" {self.text}", "default"), (f"  {waiting}", "dim")))
            rows.append(self._spinner)
        title, spent = Text(self.title, style="bold"), Text(duration(self.elapsed()), style="dim")
        return Panel(
            Group(*rows), title=title, subtitle=spent, title_align="left", subtitle_align="right", border_style="dim"
        )

    def _bar(self) -> RenderableType:
        line = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
        left = Text(f"{duration(self.left_s)} left" if self.left_s else "", style="dim")
        bar = ProgressBar(total=max(1, self.total), completed=self.step)
        line.add_row(Text(f"step {self.step}/{self.total}", style="bold"), bar, left)
        return line

    def _numbers(self) -> RenderableType:
        text, last = Text(), self.last
        if self.rewards:
            text.append("reward ", style="dim").append(f"{self.rewards[-1]:.3f}", style="bold green")
            text.append(f"  mean of last {WINDOW} ", style="dim").append(f"{self.average:.3f}  ")
            text.append(sparkline(moving_average(self.rewards), 24), style="green")
        for name, key, form in (("KL", KL, ".4f"), ("distinct", "rollout/distinct", ".0%")):
            if last.get(key) is not None:
                text.append(f"   {name} ", style="dim").append(format(last[key], form))
        if last.get("rollout/failed"):
            text.append(f"   {last['rollout/failed']:.1%} of the rollouts failed", style="bold red")
        return text

    def _stages(self) -> list[RenderableType]:
        if self.last.get(STEP_SECONDS) is None:
            return []
        stages = {stage: seconds for stage, seconds in stage_seconds(self.last).items() if seconds >= 0.05}
        parts = {part: self.last[name] for part, name in ROLLOUT_PARTS.items() if self.last.get(name) is not None}
        step = Text(f"{self.last[STEP_SECONDS]:.1f} s per step")
        sample = Text("of which a sample takes", style="dim")
        for text, found in ((step, stages), (sample, parts)):
            for name, seconds in found.items():
                text.append(f"   {name} ", style="dim").append(f"{seconds:.1f}", style="cyan")
        return [step, sample] if parts else [step]


def progress(total_steps: int, title: str = "", console: Console | None = None) -> Progress:
    """The live panel where standard output is a terminal, else plain lines.

    The console is bound to standard output as it is now, so that what libraries print may be redirected meanwhile.
    """
    console = console or Console(file=sys.stdout)
    return (LiveProgress if console.is_terminal else PlainProgress)(total_steps, title, console)
