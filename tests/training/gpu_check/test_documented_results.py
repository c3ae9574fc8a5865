"""What docs/the_3b.md says was measured on GPUs is what results/gpu has."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
STEP = "train-16.last_step."
WRITTEN = {
    "nvidia-h100-80gb-hbm3": {
        "rendering, 16 images": ("render.images_per_s", "render.tflops"),
        "memory of its activations": ("render.activations_gib", "render.planned_activations_gib"),
        "captured states": ("capture.states_relative_difference", "capture.states_largest_difference"),
        "sampling these 16": ("capture.tokens_per_s",),
        "making and writing": ("model.seconds", "model.gib"),
    },
    "nvidia-h200": {
        "sampling": (f"{STEP}rollout/sample_s",),
        "rendering": (f"{STEP}rollout/render_s",),
        "log-probs": (f"{STEP}timing_s/old_log_prob", f"{STEP}timing_s/ref"),
        "update": (f"{STEP}timing_s/update_actor",),
        "weight sync": (f"{STEP}timing_s/update_weights",),
        "largest memory of the trainer": (f"{STEP}actor/perf/max_memory_allocated_gb",),
        "sampler and trainer": (f"{STEP}rollout_corr/k3_kl", f"{STEP}training/rollout_actor_probs_pearson_corr"),
    },
}
"""Result -> beginning of a row of its table -> figures of the file that the row's numbers are, in their order."""
NUMBER = r"(?<![\w.])(\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?)( %)?"


def rounded_alike(text: str, percent: str, value: float) -> bool:
    """Whether the text is the value to as many digits as it has."""
    written = Decimal(text)
    last_digit = Decimal(1).scaleb(int(written.as_tuple().exponent))
    return abs(written - Decimal(value) * (100 if percent else 1)) <= last_digit / 2


@pytest.mark.parametrize(
    ("result", "row"), [(result, row) for result, rows in WRITTEN.items() for row in rows], ids=lambda name: name
)
def test_a_measured_figure_is_that_of_the_results(result: str, row: str) -> None:
    stages = json.loads((REPOSITORY / "results" / "gpu" / f"{result}.json").read_text())["stages"]
    text = (REPOSITORY / "docs" / "the_3b.md").read_text().partition(f"`results/gpu/{result}.json`")[2]
    _, *cells = next(line for line in text.splitlines() if line.startswith(f"| {row}")).strip("| ").split(" | ")
    found = re.findall(NUMBER, " ".join(cells))
    for path, (number, percent) in zip(WRITTEN[result][row], found, strict=False):
        stage, *keys = path.split(".", 2)
        value = stages[stage]
        for key in keys:
            value = value[key]
        assert rounded_alike(number, percent, value), f"{number} is written, {path} is {value}"
