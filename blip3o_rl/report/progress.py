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
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
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


class Progress:
    """The numbers behind both forms, and what a run reports to them."""

    def __init__(
        self,
        total_steps: int,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.title, self.clock = total_steps, title, clock
        self.console = console or Console()
        self.begun = self.phase_begun = clock()
        self.text = ""
        self.step = 0
        self.rewards: list[float] = []
        self.seconds: list[float] = []
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves the terminal as it was."""

    def phase(self, text: str) -> None:
        """What is going on before or between the steps, for example "loading the model"."""
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
        if text != self.text:
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
            Group(*rows), title=title, title_align="left", subtitle=spent, subtitle_align="right", border_style="dim"
        )

    def _bar(self) -> RenderableType:
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        line.add_row(
            Text(f"step {self.step}/{self.total}", style="bold"),
            ProgressBar(total=max(1, self.total), completed=self.step),
            Text(f"{duration(self.left_s)} left" if self.left_s else "", style="dim"),
        )
        return line

    def _numbers(self) -> RenderableType:
        last = self.last
        text = Text()
        if self.rewards:
            text.append("reward ", style="dim")
            text.append(f"{self.rewards[-1]:.3f}", style="bold green")
            text.append(f"  mean of last {WINDOW} ", style="dim")
            text.append(f"{self.average:.3f}  ")
            text.append(sparkline(moving_average(self.rewards), 24), style="green")
        if last.get(KL) is not None:
            text.append("   KL ", style="dim")
            text.append(f"{last[KL]:.4f}")
        if last.get("rollout/distinct") is not None:
            text.append("   distinct ", style="dim")
            text.append(f"{last['rollout/distinct']:.0%}")
        if last.get("rollout/failed"):
            text.append(f"   {last['rollout/failed']:.1%} of the rollouts failed", style="bold red")
        return text

    def _stages(self) -> list[RenderableType]:
        last = self.last
        if last.get(STEP_SECONDS) is None:
            return []
        text = Text.assemble((f"{last[STEP_SECONDS]:.1f} s per step", "default"))
        for stage, seconds in stage_seconds(last).items():
            if seconds >= 0.05:
                text.append(f"   {stage} ", style="dim")
                text.append(f"{seconds:.1f}", style="cyan")
        lines: list[RenderableType] = [text]
        parts = [(part, last[name]) for part, name in ROLLOUT_PARTS.items() if last.get(name) is not None]
        if parts:
            inner = Text("of which a sample takes", style="dim")
            for part, seconds in parts:
                inner.append(f"   {part} ", style="dim")
                inner.append(f"{seconds:.1f}", style="cyan")
            lines.append(inner)
        return lines


def progress(total_steps: int, title: str = "", console: Console | None = None) -> Progress:
    """The live panel where standard output is a terminal, else plain lines.

    The console is bound to standard output as it is now, so that what libraries print may be redirected meanwhile.
    """
    console = console or Console(file=sys.stdout)
    return (LiveProgress if console.is_terminal else PlainProgress)(total_steps, title, console)
