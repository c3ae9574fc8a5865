"""A warning for what drifts, and none for what only fluctuates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3o_rl.config.base import validate
from blip3o_rl.config.monitors import DriftLimits, MonitorSettings
from blip3o_rl.data.synthetic.scenes import Scene, SceneObject, draw
from blip3o_rl.errors import UserError
from blip3o_rl.monitoring.drift import WATCHED, Drift, DriftMonitor, watched_name
from blip3o_rl.monitoring.image_statistics import component_statistics, group_statistics, image_statistics

SCENE = draw(Scene((SceneObject("circle", "red", 0.3, 0.4, 0.4), SceneObject("square", "blue", 0.75, 0.7, 0.3))))


def warnings(values, metric: str = "monitor/dark_share", **limits) -> list[Drift]:
    """What is reported about a series that begins at step 1."""
    kind = metric.split("/")[1]
    watch = DriftMonitor(MonitorSettings(**{"warn": {kind: 0.1}, **limits}))
    return [drift for step, value in enumerate(values, start=1) for drift in watch.add(step, {metric: value})]


def noise(seed: int, steps: int, deviation: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, deviation, steps)


@settings(max_examples=25)
@given(st.lists(st.floats(0.3, 0.4), min_size=6, max_size=80))
def test_whatever_stays_within_the_limit_is_quiet(values):
    assert warnings(values) == []


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.02))
def test_noise_below_a_fifth_of_the_limit_is_quiet(seed, deviation):
    assert warnings(noise(seed, 100, deviation)) == []


def test_noise_as_large_as_the_limit_is_quiet_because_of_the_deviations():
    runs = [noise(seed, 60, 0.1) for seed in range(100)]
    with_deviations = sum(bool(warnings(run)) for run in runs)
    without = sum(bool(warnings(run, deviations=0.0)) for run in runs)
    assert with_deviations <= 5  # 5 % of the runs
    assert without > 75


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(6, 40), st.sampled_from((-1, 1)))
def test_a_jump_is_seen_within_the_window(seed, at, sign):
    values = noise(seed, 60, 0.01)
    values[at - 1 :] += sign * 0.4
    found = warnings(values)
    assert found and at <= found[0].step <= at + 2
    assert found[0].rises == (sign > 0)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_a_slow_drift_is_seen_before_it_is_three_times_the_amount(seed):
    found = warnings(noise(seed, 60, 0.01) + 0.01 * np.arange(60))
    assert found and 10 < found[0].step < 35


def test_a_drift_that_goes_on_is_reported_again_when_it_has_doubled():
    found = warnings([0.1] * 5 + [0.1 + 0.02 * n for n in range(1, 31)])
    assert len(found) == 3
    moved = [drift.value - drift.baseline for drift in found]
    assert 0.1 < moved[0] < 2 * moved[0] < moved[1] < 2 * moved[1] < moved[2]
    assert len(warnings([0.1] * 5 + [0.9] * 50)) <= 2


def test_one_odd_step_is_no_drift():
    assert warnings([0.5] * 10 + [0.75] + [0.5] * 10) == []


def test_the_baseline_is_the_first_steps_whatever_comes_later():
    found = warnings([0.2] * 5 + [0.4] * 20 + [1.0] * 10)
    assert len(found) >= 2 and {drift.baseline for drift in found} == {0.2}
    assert found[-1].value > 0.7


@pytest.mark.parametrize(
    ("metric", "up", "down"),
    [
        ("monitor/dark_share", True, True),
        ("monitor/edge_density", True, True),
        ("monitor/near_duplicate_share", True, False),
        ("monitor/pixel_distance", False, True),
        ("monitor/text_area", True, False),
        ("monitor/near_copy", True, False),
        ("monitor/regenerated", True, False),
        ("reward/held_out/hpsv2", False, True),
    ],
)
def test_only_the_direction_that_means_something_counts(metric, up, down):
    assert bool(warnings([0.5] * 6 + [0.9] * 6, metric)) == up
    assert bool(warnings([0.5] * 6 + [0.1] * 6, metric)) == down


def test_a_held_out_reward_without_an_amount_is_judged_by_its_deviations():
    wave = [5 + 0.05 * math.sin(step) for step in range(10)]
    assert warnings(wave, "reward/held_out/aesthetic", warn={"held_out": 0.0}) == []
    fallen = warnings([*wave, 4.0, 4.0, 4.0], "reward/held_out/aesthetic", warn={"held_out": 0.0})
    assert fallen[0].statistic == "held_out/aesthetic" and "falls" in fallen[0].text
    steady = warnings([0.3] * 8 + [0.3 - 1e-12] * 8, "reward/held_out/x", warn={"held_out": 0.0})
    assert steady == []


def test_stopping_has_its_own_limit():
    values = [0.1] * 5 + [0.1 + 0.05 * n for n in range(1, 13)]
    found = warnings(values, warn={"dark_share": 0.1}, stop={"dark_share": 0.4})
    stops = [drift for drift in found if drift.stop]
    assert len(stops) == 1 and not found[0].stop
    assert stops[0].step > found[0].step and stops[0].value - stops[0].baseline > 0.4
    assert warnings(values, warn=None, stop=None) == []
    assert [drift.stop for drift in warnings(values, warn=None, stop={"dark_share": 0.4})] == [True]


def test_missing_and_unusable_values_leave_the_step_out():
    values = [None, 0.1, math.nan, *[0.1] * 4, math.inf, *[0.9] * 6]
    found = warnings(values)
    assert found and found[0].baseline == pytest.approx(0.1)
    assert DriftMonitor(MonitorSettings(warn={"dark_share": 0.1})).add(1, {"monitor/dark_share": "0.5"}) == []


def test_a_monitor_built_from_the_metrics_goes_on_where_the_first_one_stopped():
    values = [0.1] * 5 + [0.5] * 3 + [0.9] * 4
    whole = warnings(values)
    resumed = DriftMonitor(MonitorSettings(warn={"dark_share": 0.1}))
    for step, value in enumerate(values[:8], start=1):
        resumed.add(step, {"monitor/dark_share": value})
    again = [d for s, v in enumerate(values[8:], start=9) for d in resumed.add(s, {"monitor/dark_share": v})]
    assert again == [drift for drift in whole if drift.step >= 9] != []


def test_images_that_go_dark_lose_their_edges_and_colors():
    watch = DriftMonitor(MonitorSettings(warn={"dark_share": 0.3, "edge_density": 0.03, "color_entropy": 0.05}))
    found = []
    for step in range(1, 21):
        light = 1.0 if step <= 8 else max(0.0, 1 - (step - 8) / 6)
        statistics = image_statistics((SCENE * light).astype(np.uint8))
        found += watch.add(step, {f"monitor/{name}": value for name, value in statistics.items()})
    assert {drift.statistic for drift in found} == {"dark_share", "edge_density", "color_entropy"}
    assert min(drift.step for drift in found) > 8
    assert "images go dark" in next(d.text for d in found if d.statistic == "dark_share")


@pytest.mark.parametrize("hacked", [False, True])
def test_the_shipped_limits_tell_a_published_case_of_hacking_from_an_ordinary_run(hacked):
    """Levels and noise of an ordinary run of the mini model; dark share, edges and colors moved over 40 steps as in
    UniRL's report of an OCR reward without KL (+0.475, -60 %, -54 %)."""
    ordinary = {"dark_share": (0.026, 0.006), "edge_density": (0.069, 0.008), "color_entropy": (0.14, 0.015)}
    change = {"dark_share": 0.475, "edge_density": -0.6 * 0.069, "color_entropy": -0.54 * 0.14}
    seen = []
    for seed in range(20):
        rng, watch, reported = np.random.default_rng(seed), DriftMonitor(MonitorSettings()), set()
        for step in range(1, 81):
            share = min(1.0, max(0, step - 10) / 40) if hacked else 0.0
            values = {n: mean + share * change[n] + rng.normal(0, sd) for n, (mean, sd) in ordinary.items()}
            reported |= {d.statistic for d in watch.add(step, {f"monitor/{n}": v for n, v in values.items()})}
        seen.append(reported)
    if hacked:
        assert all("dark_share" in reported for reported in seen)
        assert sum(reported == set(ordinary) for reported in seen) >= 18
    else:
        assert sum(map(bool, seen)) <= 1


def test_a_group_that_collapses():
    noise = np.random.default_rng(3)
    watch = DriftMonitor(MonitorSettings(warn={"near_duplicate_share": 0.25, "pixel_distance": 0.05}))
    found = []
    for step in range(1, 16):
        group = [np.roll(SCENE, int(noise.integers(4, 60)) + 3 * n, axis=1) for n in range(4)]
        if step > 8:
            group = [group[0]] * 4
        found += watch.add(step, {f"monitor/{name}": value for name, value in group_statistics(group).items()})
    assert {drift.statistic for drift in found} == {"near_duplicate_share", "pixel_distance"}
    assert all(drift.step > 8 for drift in found)


def test_text_area_comes_from_the_reward_that_reads_the_image():
    parts = {"ocr": 0.5, "ocr/text_area": 0.2, "signs/text_area": 0.3, "ocr/strict": 1.0}
    assert component_statistics(parts) == {"text_area": 0.3}
    assert component_statistics({"geneval": 1.0}) == {}
    copied = {"edit/near_copy": 1.0, "edit/near_copy_add": 1.0, "edit/regenerated": 0.0}
    assert component_statistics(copied) == {"near_copy": 1.0, "regenerated": 0.0}


def test_metric_names():
    assert watched_name("monitor/dark_share") == "dark_share"
    assert watched_name("reward/held_out/hpsv2") == "held_out/hpsv2"
    assert watched_name("rollout/probs_diff") == "probs_diff"
    for other in (
        "reward/held_out/hpsv2/failed",
        "reward/geneval",
        "monitor/blur",
        "monitor/held_out",
        "monitor/probs_diff",
        "rollout/score",
    ):
        assert watched_name(other) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"warn": {"dark_shar": 0.1}}, "monitors.warn.dark_shar: there is no such key; did you mean 'dark_share'?"),
        ({"stop": {"color": -1}}, "monitors.stop.color"),
        ({"warn": {"colour_entropy": 1}}, "monitors.warn.colour_entropy: was renamed; write color_entropy"),
        ({"stop": {"dark_share": -1}}, "monitors.stop.dark_share=-1: must be greater than or equal to 0"),
        ({"warn": 0.1}, "monitors.warn=0.1: is not a mapping"),
        ({"baseline_steps": 1}, "monitors.baseline_steps=1"),
        ({"baseline_steps": None}, "monitors.baseline_steps=null"),
        ({"window": 0}, "monitors.window"),
        ({"deviations": "4"}, "monitors.deviations"),
    ],
)
def test_mistakes_in_the_limits(change, words):
    with pytest.raises(UserError) as caught:
        validate(MonitorSettings, change, "monitors")
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_nulls_switch_off():
    values = [0.1] * 6 + [0.9] * 6
    assert warnings(values) != []
    assert warnings(values, warn=None, stop=None) == []
    assert warnings(values, warn=dict.fromkeys(WATCHED)) == []


def test_every_statistic_has_a_limit_and_a_meaning():
    assert set(DriftLimits.model_fields) == set(WATCHED)
