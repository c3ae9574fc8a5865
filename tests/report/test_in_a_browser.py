"""The page of a run in a real browser, as wide as a desk and as narrow as a phone. Needs playwright and Chromium."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip3o_rl.io import write_json, write_lines, write_text
from blip3o_rl.report import page, warnings
from blip3o_rl.report.gallery import Tile, save_grid
from blip3o_rl.report.run_folder import RunFolder

playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright to look at pages in a browser")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here; apt install chromium")
WIDTHS = {"desk": (1280, 800), "phone": (375, 720)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def run_of(folder: Path, steps: int) -> RunFolder:
    """A run with everything a page can show, as far as `steps` steps have it."""
    run, rng = RunFolder.create("shapes", path=folder), np.random.default_rng(steps)
    write_text(run.config, "run:\n  recipe: shapes\n  a_key_with_a_very_long_value: " + "x" * 400 + "\n")
    write_text(run.overrides, "shapes\nreward.rewards.mine.path=/a/rather/long/path/to/a/reward/file.py:function\n")
    for step in range(1, steps + 1):
        rise = 1 - math.exp(-step / 40)
        values = {"critic/score/mean": rise + rng.normal(0, 0.03), "reward/geneval": rise, "reward/ocr": rise / 2}
        values |= {"actor/kl_loss": step / 1000, "actor/entropy": 3 - rise, "monitor/dark_share": 0.1 + rise / 9}
        run.append_metrics(step, {**values, "timing_s/step": 10.0, "timing_s/gen": 6.0, "timing_s/ref": 2.0})
        if step % 5 == 0 or step == 1:
            tiles = [Tile(_noise(rng, 8), "a photo of two red circles and a green cross", rise) for _ in range(16)]
            save_grid(run.grid(step), tiles)
            write_lines(
                run.rollout_file(step), [{"prompt": f"prompt {n} 两个红色的圆", "score": rise} for n in range(8)]
            )
    if steps:
        for at in sorted({0, steps // 2, steps}):
            _evaluate(run, run.evaluation(at, last=steps), rng, at / steps)
        line = {"step": steps, "statistic": "dark_share", "value": 0.4, "baseline": 0.1, "text": "images go dark"}
        warnings.append(run, line, run.grid(1))
    return run


def _noise(rng: np.random.Generator, side: int) -> np.ndarray:
    return rng.integers(0, 256, (side, side, 3), np.uint8)


def _evaluate(run: RunFolder, file: Path, rng: np.random.Generator, level: float) -> None:
    images = []
    for number in range(24):
        name = f"{file.stem}/{number:04d}.png"
        save_grid(run.path / name, [Tile(_noise(rng, 64), "x", 1.0)])
        prompt = f"a photo of the longest prompt that a held-out side may have, number {number // 2}"
        image = {"prompt": prompt, "tag": f"tag_{number % 5}", "seed": number, "file": name, "reason": "one is missing"}
        images.append({**image, "partial": float(np.clip(level + rng.normal(0, 0.2), 0, 1))})
    write_json(file, {"overall": level, "images": images})


@pytest.mark.parametrize("steps", [0, 1, 24, 300])
def test_a_page_fits_every_screen_and_asks_for_nothing(browser: Any, tmp_path: Path, steps: int) -> None:
    file = page.write(run_of(tmp_path / f"run-{steps}", steps))
    for name, (width, height) in WIDTHS.items():
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            tab, asked, said = context.new_page(), [], []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.goto(file.as_uri())
            tab.screenshot(path=tmp_path / f"{name}-{scheme}.png", full_page=True)
            assert [url for url in asked if not url.startswith("data:")] == [file.as_uri()] and not said
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, f"{name}: wider than the screen"
            assert tab.evaluate("[...document.querySelectorAll('td')].every(cell => cell.offsetHeight < 40)"), (
                "one line"
            )
            broken = tab.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
            images = tab.evaluate("document.images.length")
            assert not broken and (images > 10) == (steps > 0)
            ink, paper = (
                tab.evaluate(f"getComputedStyle(document.body).{key}") for key in ("color", "backgroundColor")
            )
            assert (_brightness(paper) > _brightness(ink)) == (scheme == "light")
            context.close()


def _brightness(color: str) -> float:
    return sum(map(float, color.removeprefix("rgb(").removesuffix(")").split(",")))


def test_what_is_folded_opens_by_keyboard_and_images_say_what_they_are(browser: Any, tmp_path: Path) -> None:
    tab = browser.new_page()
    tab.goto(page.write(run_of(tmp_path / "run", 24)).as_uri())
    assert tab.evaluate("[...document.images].every(i => i.alt)")
    folded = tab.locator("details").count()
    assert folded > 1 and tab.locator("details[open]").count() == 0
    for _ in range(folded + 3):  # the link to the warnings and scrollable tables are on the way
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.tagName") == "SUMMARY":
            tab.keyboard.press("Enter")
    assert tab.locator("details[open]").count() == folded
