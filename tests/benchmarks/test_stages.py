"""The original's procedure does what this package does, only slower; and what is counted is right."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip3o_rl import machine
from blip3o_rl.benchmarks import bounds, measure, original, scaling, stages, startup, step
from blip3o_rl.benchmarks.measure import Procedure, Report, Timing, interleaved
from blip3o_rl.cli import main as cli
from blip3o_rl.model.generation import GenerationConfig
from blip3o_rl.model.pipeline import Blip3oPipeline
from blip3o_rl.model.rendering import render
from blip3o_rl.training.log_probs import log_probs
from blip3o_rl.training.planning import counting, plan

CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "a star left of a ring"]


def test_the_originals_rendering_gives_the_same_images(untrained: Any) -> None:
    states = torch.randn(2, 82, 256, generator=torch.Generator().manual_seed(0))
    config = GenerationConfig(steps=6, guidance=3.0)
    theirs = original.render(untrained.renderer, config, states, [1, 2]).astype(int)
    assert np.abs(theirs - render(untrained.renderer, states, [1, 2], config)).max() <= 1


def test_the_originals_second_pass_gives_the_states_of_the_first(untrained: Any) -> None:
    """One prompt at a time: without an attention mask the original's second pass sees the padding."""
    pipe = Blip3oPipeline(untrained.policy, untrained.tokenizer, untrained.renderer)
    prompts = pipe.prompt_ids(PROMPTS[:1], 2)
    sequences = original.generate(untrained.policy, prompts, untrained.tokenizer.pad_token_id, 81)
    assert sequences.shape == (1, len(prompts[0]) + 81)
    tokens = torch.randint(untrained.layout.image_ids.start, untrained.layout.image_ids.stop, (1, 81))
    sequences = torch.cat([torch.tensor(prompts), tokens], dim=1)
    torch.testing.assert_close(
        original.hidden_states(untrained.policy, sequences, 81),
        pipe.hidden_states(prompts, tokens, 2),
        atol=1e-4,
        rtol=0,
    )


def test_the_originals_log_probs_are_those_of_the_whole_vocabulary() -> None:
    states, head, labels = torch.randn(5, 8), torch.randn(30, 8), torch.randint(30, (5,))
    torch.testing.assert_close(original.log_probs(states, head, labels), log_probs(states @ head.T, labels))


def test_each_procedure_is_called_once_per_round_after_a_first_call() -> None:
    calls: list[str] = []
    procedures = [Procedure("s", name, lambda name=name: calls.append(name), 1) for name in ("a", "b")]
    timings = interleaved(procedures, 3, CPU)
    assert calls == ["a", "b"] * 4
    assert [len(timing.seconds) for timing in timings] == [3, 3]


def test_operations_are_counted_by_torch_and_equal_the_plan(untrained: Any) -> None:
    """Real tensors in inference mode against the plan's fake ones."""
    states, seeds = torch.randn(4, 82, 256), [1, 2, 3, 4]
    _, flops = measure.counted(lambda: render(untrained.renderer, states, seeds, GenerationConfig(steps=3)))
    model = plan.of_folder(untrained.folder)
    shared, one, decoded = (
        counting.renderer_condition(model, 4, 82, True),
        counting.renderer_step(model, 4, 82, True),
        counting.decoding(model, 4),
    )
    assert flops == pytest.approx(shared.flops + 3 * one.flops + decoded.flops, rel=1e-3)


def test_a_report_has_ratios_and_shares_of_the_bound() -> None:
    bound = bounds.Bounds("cpu", "float32", 1e9, 1e9)
    rows = [
        Timing("render", "original", 2, [4.0, 5.0, 6.0], flops=2.5e9),
        Timing("render", "ours", 2, [2.0, 2.5, 100.0], flops=1e9, notes={"gray_levels": 0}),
        Timing("score", "any", 2, [1.0]),
    ]
    found = json.loads(json.dumps(Report("bench render", {"steps": 3}, rows, bound).to_json()))
    assert [row["times_faster"] for row in found["rows"]] == [1, 2, 1]
    assert [row["share_of_matmul_rate"] for row in found["rows"]] == [0.5, 0.4, None]
    assert found["rows"][1]["gray_levels"] == 0 and found["settings"] == {"steps": 3}
    assert found["machine"]["cores"] >= 1 and "torch" in found["versions"]


def test_bounds_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LIMIT_S", 0.01)
    found = bounds.measure(CPU, torch.float32)
    assert found.flops_per_s > 1e8 and found.bytes_per_s > 1e8
    assert (found.device, found.dtype) == ("cpu", "float32")


def test_every_rendering_procedure_makes_all_images(untrained: Any) -> None:
    config = GenerationConfig(scale=2, steps=4, batch_size=2)
    procedures = stages.rendering(untrained.renderer, config, images=3, rows=82)
    timings = interleaved(procedures, 1, CPU)
    stages.note_differences(timings)
    rendered = [timing for timing in timings if timing.stage == "render"]
    assert all(timing.result.shape == (3, 64, 64, 3) for timing in rendered)
    compiled = [rendered.pop(3)] if machine.has_compiler() else []
    assert all(timing.notes["gray_levels"] <= 1 for timing in [*rendered[:3], *compiled])
    work = [timing.flops or 0 for timing in rendered[:4]]
    assert all(more > less for more, less in itertools.pairwise(work)), "each saving leaves less to do"
    assert [(one.name, one.flops) for one in compiled] in ([], [("compiled", work[2])])


def test_the_heads_need_less_memory_for_image_tokens_alone() -> None:
    found = stages.heads(vocabulary=4000, image_tokens=1000, hidden=16, tokens=50, images=2, device=CPU)
    (theirs, theirs_peak), (ours, ours_peak), *_ = found
    assert (theirs.name, ours.name) == ("original", "image tokens, in chunks")
    assert ours_peak() < theirs_peak() / 3
    assert len(interleaved([procedure for procedure, _ in found], 1, CPU)) == 4


def test_a_step_is_the_sum_of_its_columns() -> None:
    timings = [
        Timing("sample", step.ORIGINAL, 2, [2.0, 4.0]),
        Timing("sample", step.SAME, 2, [1.0, 1.0]),
        Timing("render", step.ORIGINAL, 2, [10.0, 12.0]),
        Timing("render", step.SAME, 2, [5.0, 5.0]),
        Timing("render", step.RECIPE, 2, [0.5, 0.5]),
        Timing("score", step.ANY, 2, [1.0, 1.0]),
    ]
    together = step.totals(timings)
    assert [timing.stage for timing in together] == [step.ROLLOUT] * 3 + [step.STEP] * 3
    found = {timing.name: timing.seconds for timing in together if timing.stage == step.STEP}
    assert found == {step.ORIGINAL: [13.0, 17.0], step.SAME: [7.0, 7.0], step.RECIPE: [2.5, 2.5]}


def test_startup_runs_each_in_a_fresh_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "COMMANDS", {"--help": ["--help"]})
    monkeypatch.setattr(startup, "PROCESSES", {"numbers": "numpy"})
    held = np.ones(2**28, np.uint8)  # what this process has is not the child's
    command, process = startup.measure(2)
    assert len(command.seconds) == len(process.seconds) == 2
    assert command.notes["heavy"] == [] and process.notes["modules"] > 50
    assert 5 < process.notes["peak_mib"] < len(held) / 2**20


def test_scaling_makes_every_number_of_images_and_every_scale(untrained: Any, tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    words = ["--backend=transformers", "--images=2", "--images=1", "--steps=1", "--repetitions=1"]
    assert cli.run(["bench", "scaling", "--model", str(untrained.folder), *words, f"--out={target}"]) == 0
    rows = json.loads(target.read_text())["rows"]
    sizes = ["2 images of 81 tokens", "1 images of 81 tokens", "1 images of 169 tokens", "1 images of 729 tokens"]
    assert [(row["stage"], row["procedure"]) for row in rows] == [(s, size) for size in sizes for s in scaling.STAGES]
    assert target.with_suffix(".png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("words", "stage"),
    [
        (["render", "--steps=3", "--batch-size=2"], "render"),
        (["sample", "--backend=transformers"], "sample"),
        (["logprob", "--vocabulary=500", "--image-tokens=100", "--hidden=16", "--tokens=9"], "log-probs"),
    ],
)
def test_the_commands_print_a_table_and_write_json(
    words: list[str], stage: str, untrained: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LIMIT_S", 0.01)
    target = tmp_path / "result.json"
    given = [] if words[0] == "logprob" else ["--model", str(untrained.folder)]
    assert cli.run(["bench", *words, *given, "--images=2", "--repetitions=1", f"--out={target}"]) == 0
    shown = capsys.readouterr().out
    assert f"{stage}: original" in shown and "TFLOP/s" in shown
    found = json.loads(target.read_text())
    assert found["rows"][0]["procedure"] == "original" and found["settings"]["repetitions"] == 1
    assert found["bounds"]["flops_per_s"] > 0
