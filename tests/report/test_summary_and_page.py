"""The numbers of a finished run, and its page."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blip3o_rl.io import write_json, write_lines, write_text
from blip3o_rl.report import charts, checkpoints, html, page, summary, warnings
from blip3o_rl.report.gallery import Tile, save_grid
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.series import duration, medians, moving_average, sparkline, stage_seconds


@pytest.fixture
def folder(tmp_path):
    run = RunFolder.create("shapes", path=tmp_path / "shapes-1")
    write_text(run.config, "run:\n  recipe: <shapes>\n")
    for step in range(1, 11):
        timing = {"timing_s/step": 10.0 + step, "timing_s/gen": 6.0, "timing_s/old_log_prob": 1.0, "timing_s/ref": 2.0}
        run.append_metrics(
            step, {"critic/score/mean": step / 10, "actor/kl_loss": step / 1000, "guard/blur": 0.1, **timing}
        )
    return run


def test_without_evaluations_the_training_reward_is_compared(folder):
    found = summary.summarize(folder)
    assert found.steps == 10
    assert found.before == pytest.approx(0.3) and found.after == pytest.approx(0.8)
    assert found.measured_by == "the training reward, first and last 5 steps"
    assert found.kl == pytest.approx(0.01)
    assert found.step_s == pytest.approx(15.5) and found.total_s == pytest.approx(155)
    assert found.stage_s == {"rollout": 6.0, "log-probs": 3.0, "other": 6.5}


def test_an_evaluation_is_no_part_of_a_steps_time(folder):
    folder.append_metrics(10, {"timing_s/eval": 30.0})
    found = dict(summary.facts(summary.summarize(folder)))
    assert found["time of a step"] == "rollout 6.0 s  log-probs 3.0 s  other 6.5 s"
    assert found["an evaluation"].startswith("30.0 s")


def test_evaluations_win_over_the_training_reward(folder):
    write_json(folder.eval_before, {"overall": 0.41, "reward": 0.2, "images": []})
    write_json(folder.eval_after, {"overall": 0.58, "reward": 0.3, "images": []})
    found = summary.write(folder)
    assert (found.before, found.after) == (0.41, 0.58)
    assert (found.reward_before, found.reward_after) == (0.2, 0.3)
    assert json.loads(folder.summary_json.read_text())["gain"] == pytest.approx(0.17)
    text = folder.summary_text.read_text()
    assert "0.410 -> 0.580  (+0.170)" in text and "held-out prompts, fixed seeds" in text and str(folder.path) in text


def test_the_best_checkpoint_is_named_with_its_score_and_what_makes_a_model_folder_of_it(folder):
    for step, score in ((4, 0.7), (10, 0.6)):
        saved = folder.checkpoints / f"global_step_{step}"
        (saved / "actor").mkdir(parents=True)
        checkpoints.mark_complete(saved, step)
        checkpoints.keep_if_best(saved, score, {})
    found = summary.write(folder)
    best = str(folder.checkpoints / "best" / "global_step_4")
    assert (found.best, found.best_score) == (best, 0.7) and found.steps == 10
    assert json.loads(folder.summary_json.read_text())["best"] == best
    text = folder.summary_text.read_text()
    assert "0.700 at step 4" in text and "blip3o-rl export" in text and best in "".join(text.split())


def test_a_run_that_made_no_step_has_a_summary_and_a_page(tmp_path):
    run = RunFolder.create("shapes", path=tmp_path / "empty")
    write_text(run.config, "run: {}\n")
    found = summary.write(run)
    assert found.steps == 0 and found.gain is None
    assert "has made no step yet" in page.write(run).read_text()


def test_page_holds_curves_images_and_escaped_config_and_nothing_from_outside(folder):
    for step in range(1, 12):
        save_grid(folder.grid(step), [Tile(np.zeros((8, 8, 3), np.uint8), "x", 1.0)])
    text = page.write(folder).read_text()
    assert "&lt;shapes&gt;" in text and "<shapes>" not in text
    assert text.count("data:image/png;base64,") == page.MAX_GRIDS
    assert "8 of 11 grids" in text and "step 11<" in text
    assert text.count("<svg") == 4 and "guard/blur" in text and "time of a step" in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_the_prompts_of_a_grid_are_text_with_their_mean_scores(folder):
    save_grid(folder.grid(10), [Tile(np.zeros((8, 8, 3), np.uint8), "x", 1.0)])
    scores = {"赤い丸": (0.5, 1.0), "<i>x": (None,)}
    lines = [{"prompt": prompt, "score": score} for prompt, found in scores.items() for score in found]
    write_lines(folder.rollout_file(10), lines)
    text = page.write(folder).read_text()
    assert "<li>0.75 赤い丸</li>" in text and "<li>failed &lt;i&gt;x</li>" in text


def test_monitors_of_runs_before_and_after_their_renaming_are_shown(folder):
    folder.append_metrics(3, {"monitor/dark_share": 0.2})
    text = page.write(folder).read_text()
    assert "guard/blur" in text and "monitor/dark_share" in text


def test_stage_seconds_and_medians_leave_out_what_is_absent():
    assert stage_seconds({"step": 1}) == {}
    assert stage_seconds({"timing_s/gen": 2.0, "timing_s/step": 1.5}) == {"rollout": 2.0, "other": 0.0}
    assert medians([{"timing_s/gen": 1.0}, {"timing_s/gen": 3.0}, {}]) == {"rollout": 2.0}


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(1, 8))
def test_moving_average_is_the_mean_of_the_window(numbers, window):
    found = moving_average(numbers, window)
    assert len(found) == len(numbers)
    for end in range(1, len(numbers) + 1):
        assert found[end - 1] == pytest.approx(np.mean(numbers[max(0, end - window) : end]), abs=1e-9)


def test_charts_are_inline_in_the_colors_of_the_page_and_survive_one_point_and_none():
    assert charts.lines([charts.Line("x", [])]) == "" and charts.stacked([]) == ""
    one = charts.lines([charts.Line("x", [(1, 0.0)], band=[(-0.5, 0.5)])])
    many = charts.lines([charts.Line("x", [(1, 0.0), (2, 3.0)]), charts.Line("y", [(1, 1.0)], faint=True)])
    areas = charts.stacked([charts.Line("x", [(1, 2.0)]), charts.Line("y", [(1, 3.0)])])
    for svg in (one, many, areas):
        assert svg.startswith("<svg") and "nan" not in svg and "href" not in svg
        assert "var(--s0)" in svg and "var(--rule)" in svg and not re.search("#0[0-9]00", svg)
    assert "var(--s1)" in many and "var(--s1)" in areas
    dot = charts.lines([charts.Line("x", [(1, 0.0)])])
    assert re.search(r'd="M ([\d.]+ [\d.]+) L \1 "[^>]*var\(--s0\)', re.sub(r"\s+", " ", dot)), "one point is a dot"


def test_sparkline_and_duration():
    assert sparkline([]) == ""
    assert sparkline([0, 1]) == "▁█"
    assert len(set(sparkline([2, 2, 2]))) == 1
    assert [duration(s) for s in (4.24, 75, 125, 12_000)] == ["4.2 s", "75 s", "2 min 05 s", "3 h 20 min"]


def test_warnings_of_older_runs_have_their_image_under_its_former_name(folder):
    save_grid(folder.path / "warnings" / "a.png", [Tile(np.zeros((8, 8, 3), np.uint8), "x", 1.0)])
    line = {"step": 3, "statistic": "dark_share", "text": "images go dark"}
    write_lines(warnings.file(folder), [{**line, "picture": "warnings/a.png"}, {**line, "step": 9, "image": "no.png"}])
    warnings.truncate_after(folder, 5)
    assert [w["image"] for w in warnings.read(folder)] == [folder.path / "warnings" / "a.png"]
    assert page.write(folder).read_text().count("data:image/png") == 1


def test_the_page_shows_what_changed_most_with_its_reason_and_intervals(folder):
    changes = [(0.0, 1.0), (1.0, 0.25), (0.5, 0.5), (0.1, 0.1)]
    for file, side in ((folder.eval_before, 0), (folder.eval_after, 1)):
        images = []
        for number, values in enumerate(changes):
            name = f"{file.stem}/{number}.png"
            save_grid(folder.path / name, [Tile(np.zeros((8, 8, 3), np.uint8), "x", 1.0)])
            image = {"prompt": f"prompt {number // 2}", "tag": "ab"[number % 2], "seed": number, "file": name}
            images.append({**image, "partial": values[side], "reason": f"because of {number}"})
        write_json(file, {"overall": 0.5, "images": images})
    text = page.write(folder).read_text()
    sections = {part.split(" <")[0]: part for part in text.split("<h2>")}
    reasons = {part: re.findall("because of (.)", text) for part, text in sections.items()}
    assert (reasons["Most improved"], reasons["Most worsened"]) == (["0"], ["1"])
    assert reasons["Worst after training"] == ["3", "1", "2", "0"]
    assert "1 became better,\n2 stayed, 1 became worse" in sections["Held-out score"]
    assert re.search(r"<td>overall</td><td>0.400</td><td>0.463</td>\s*<td>.0.062</td>", text)
    assert "held-out score" in sections["Held-out rewards"]
    assert (
        list(sections).index("Before and after") < list(sections).index("Training") < list(sections).index("Monitors")
    )


def test_several_runs_are_on_one_page_with_the_curves_that_they_share(folder, tmp_path):
    other = RunFolder.create("shapes", path=tmp_path / "<other>")
    other.append_metrics(1, {"critic/score/mean": 0.5, "actor/entropy": 2.0})
    text = page.write_several([folder, other], tmp_path / "both.html").read_text()
    assert "<th>&lt;other&gt;</th>" in text and text.count("<svg") == 1
    assert "shapes-1</span>" in text and "2 runs" in text and not re.search(r'(src|href)="(?!data:)', text)


def test_large_images_are_reduced_for_the_page():
    url = html.png_url(np.zeros((1024, 512, 3), np.uint8), page.THUMBNAIL)
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).size == (page.THUMBNAIL // 2, page.THUMBNAIL)
