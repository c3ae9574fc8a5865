"""What a person sees while a run goes on: a live panel in a terminal, one plain line a step everywhere else.

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
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

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


class Progress(Protocol):
    """What the run tells; see `LiveProgress` and `PlainProgress`."""

    def phase(self, text: str) -> None:
        """What is going on before or between the steps, for example "loading the model"."""

    def update(self, metrics: Mapping[str, Any]) -> None:
        """One flat line of metrics with its "step"."""

    def note(self, text: str) -> None:
        """A line that stays, for example a warning."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


class _History:
    """The numbers behind both forms."""

    def __init__(self, total_steps: int, clock: Callable[[], float]):
        self.total = total_steps
        self.clock = clock
        self.begun = clock()
        self.step = 0
        self.rewards: list[float] = []
        self.seconds: list[float] = []
        self.last: dict[str, Any] = {}

    def add(self, metrics: Mapping[str, Any]) -> bool:
        """Takes a line in; True if it is a training step (evaluation lines have no step time and no reward)."""
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
    def left_s(self) -> float | None:
        """Seconds left, or None before the first step."""
        if not self.seconds:
            return None
        return max(0, self.total - self.step) * median(self.seconds[-WINDOW:])

    def elapsed(self) -> float:
        return self.clock() - self.begun


class PlainProgress:
    """One line a step, for output that is no terminal."""

    def __init__(
        self,
        total_steps: int,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console = console or Console()
        self._history = _History(total_steps, clock)
        self._phase = ""
        if title:
            self.note(title)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        """Nothing is left open."""

    def phase(self, text: str) -> None:
        if text != self._phase:
            self._phase = text
            self.note(f"[{duration(self._history.elapsed())}] {text}")

    def note(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def update(self, metrics: Mapping[str, Any]) -> None:
        history = self._history
        if not history.add(metrics):
            return
        parts = [f"step {history.step}/{history.total}"]
        if history.rewards:
            parts.append(f"reward {history.rewards[-1]:.3f} (mean of last {WINDOW}: {history.average:.3f})")
        if metrics.get(KL) is not None:
            parts.append(f"KL {metrics[KL]:.4f}")
        if metrics.get("rollout/failed"):
            parts.append(f"failed {metrics['rollout/failed']:.1%}")
        seconds = metrics.get(STEP_SECONDS)
        if seconds is not None:
            split = ", ".join(f"{stage} {s:.1f}" for stage, s in stage_seconds(metrics).items() if s >= 0.05)
            parts.append(f"{seconds:.1f} s" + (f" ({split})" if split else ""))
        if history.left_s:
            parts.append(f"left {duration(history.left_s)}")
        self.note("  ".join(parts))


class LiveProgress:
    """A panel that redraws itself."""

    def __init__(
        self,
        total_steps: int,
        title: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console = console or Console()
        self._history = _History(total_steps, clock)
        self._title = title
        self._phase = "starting"
        self._phase_begun = clock()
        self._spinner = Spinner("dots", style="cyan")
        self._live = Live(console=self._console, get_renderable=self._draw, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        tb: TracebackType | None = None,
    ) -> None:
        self._phase = "stopped" if kind else ""
        self._live.stop()

    def phase(self, text: str) -> None:
        if text != self._phase:
            self._phase = text
            self._phase_begun = self._history.clock()

    def note(self, text: str) -> None:
        self._live.console.print(text, markup=False, highlight=False)

    def update(self, metrics: Mapping[str, Any]) -> None:
        self._history.add(metrics)

    def _draw(self) -> RenderableType:
        history = self._history
        rows: list[RenderableType] = []
        if history.step:
            rows += [self._bar(), self._numbers(), *self._stages()]
        if self._phase:
            waiting = duration(history.clock() - self._phase_begun)
            self._spinner.update(text=Text.assemble((f" {self._phase}", "default"), (f"  {waiting}", "dim")))
            rows.append(self._spinner)
        title = Text(self._title, style="bold")
        spent = Text(duration(history.elapsed()), style="dim")
        return Panel(
            Group(*rows), title=title, title_align="left", subtitle=spent, subtitle_align="right", border_style="dim"
        )

    def _bar(self) -> RenderableType:
        history = self._history
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True, justify="right")
        left = history.left_s
        line.add_row(
            Text(f"step {history.step}/{history.total}", style="bold"),
            ProgressBar(total=max(1, history.total), completed=history.step),
            Text(f"{duration(left)} left" if left else "", style="dim"),
        )
        return line

    def _numbers(self) -> RenderableType:
        history, last = self._history, self._history.last
        text = Text()
        if history.rewards:
            text.append("reward ", style="dim")
            text.append(f"{history.rewards[-1]:.3f}", style="bold green")
            text.append(f"  mean of last {WINDOW} ", style="dim")
            text.append(f"{history.average:.3f}  ")
            text.append(sparkline(moving_average(history.rewards), 24), style="green")
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
        last = self._history.last
        if last.get(STEP_SECONDS) is None:
            return []
        text = Text.assemble((f"{last[STEP_SECONDS]:.1f} s a step", "default"))
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


def progress(total_steps: int, title: str = "", console: Console | None = None) -> LiveProgress | PlainProgress:
    """The live panel where standard output is a terminal, else plain lines.

    The console is bound to standard output as it is now, so that what libraries print may be redirected meanwhile.
    """
    console = console or Console(file=sys.stdout)
    return (LiveProgress if console.is_terminal else PlainProgress)(total_steps, title, console)
