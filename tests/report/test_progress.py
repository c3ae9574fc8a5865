"""What is shown while a run goes on, in a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from blip3o_rl.report.progress import LiveProgress, PlainProgress, progress


def _line(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "critic/score/mean": 0.4 + 0.1 * step,
        "actor/kl_loss": 0.0012,
        "timing_s/step": 10.0,
        "timing_s/gen": 6.0,
        "timing_s/old_log_prob": 1.0,
        "timing_s/ref": 0.5,
        "timing_s/update_actor": 2.0,
        **more,
    }


def _console(terminal: bool = False) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=120, color_system=None), stream


def test_plain_mode_is_one_line_a_step_with_all_numbers():
    console, stream = _console()
    with PlainProgress(4, "shapes", console, clock=lambda: 0.0) as shown:
        shown.phase("starting Ray")
        shown.phase("starting Ray")
        shown.update(_line(1))
        shown.update(_line(2))
    assert stream.getvalue().splitlines() == [
        "shapes",
        "[0.0 s] starting Ray",
        "step 1/4  reward 0.500 (mean of last 5: 0.500)  KL 0.0012  10.0 s (rollout 6.0, log-probs 1.5, update 2.0, "
        "other 0.5)  left 30 s",
        "step 2/4  reward 0.600 (mean of last 5: 0.550)  KL 0.0012  10.0 s (rollout 6.0, log-probs 1.5, update 2.0, "
        "other 0.5)  left 20 s",
    ]


def test_lines_that_are_no_training_step_are_not_shown():
    console, stream = _console()
    with PlainProgress(4, console=console) as shown:
        shown.update({"step": 0, "val-core/shapes": 0.4})
    assert stream.getvalue() == ""


def test_failed_rewards_are_said_in_both_modes():
    console, stream = _console()
    PlainProgress(4, console=console).update(_line(1, **{"rollout/failed": 0.25}))
    assert "failed 25.0%" in stream.getvalue()
    console, stream = _console(terminal=True)
    live = LiveProgress(4, console=console)
    live.update(_line(1, **{"rollout/failed": 0.25}))
    console.print(live._panel())
    assert "25.0% of the rollouts failed" in stream.getvalue()


def test_live_panel_goes_from_phase_to_bar():
    console, stream = _console(terminal=True)
    now = [0.0]
    live = LiveProgress(60, "shapes", console, clock=lambda: now[0])
    live.phase("loading the model")
    now[0] = 12.0
    console.print(live._panel())
    assert "loading the model  12 s" in stream.getvalue()
    assert "step" not in stream.getvalue()
    for step in range(1, 31):
        live.update(_line(step))
    live.phase("")
    console.print(live._panel())
    text = stream.getvalue()
    assert "step 30/60" in text and "5 min 00 s left" in text
    assert "rollout 6.0" in text and "log-probs 1.5" in text and "update 2.0" in text and "KL 0.0012" in text


def test_live_display_starts_and_stops_also_on_an_error():
    console, stream = _console(terminal=True)
    try:
        with LiveProgress(3, "shapes", console) as shown:
            shown.update(_line(1))
            raise RuntimeError("x")
    except RuntimeError:
        pass
    assert "step 1/3" in stream.getvalue()


def test_the_form_follows_the_terminal():
    assert isinstance(progress(3, console=_console(terminal=True)[0]), LiveProgress)
    assert isinstance(progress(3, console=_console()[0]), PlainProgress)


def test_output_redirected_later_does_not_swallow_the_progress(capsys):
    import contextlib

    shown = progress(3)
    with contextlib.redirect_stdout(io.StringIO()) as library_output:
        shown.phase("starting Ray")
    assert library_output.getvalue() == ""
    assert "starting Ray" in capsys.readouterr().out
