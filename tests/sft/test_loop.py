from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blip3o_rl.sft import loop


@given(steps=st.integers(1, 500), warmup=st.integers(0, 50), step=st.integers(0, 499))
def test_lr_factor_stays_in_range(steps: int, warmup: int, step: int) -> None:
    if step < steps:
        assert 0 < loop.lr_factor(step, steps, warmup) <= 1


def test_lr_factor_rises_then_falls_to_the_floor() -> None:
    factors = [loop.lr_factor(step, 100, 10, floor=0.1) for step in range(101)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0
    assert factors[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(factors[10:], factors[11:], strict=False))


def test_a_crash_while_saving_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint.pt"
    loop.save_atomically({"step": 1}, file)

    def broken(state: object, target: Path) -> None:
        target.write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        loop.save_atomically({"step": 2}, file)
    assert torch.load(file, weights_only=True) == {"step": 1}


def test_step_generators_differ_and_repeat() -> None:
    draws = [float(torch.rand((), generator=loop.generator_for(1, step))) for step in (0, 1, 0)]
    assert draws[0] == draws[2] != draws[1]
