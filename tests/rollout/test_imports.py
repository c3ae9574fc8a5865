"""What the processes of a run import before their work begins; each import is paid for by every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # fresh interpreters, which import verl

RENDERING = ("diffusers", "blip3o_rl.model.renderer", "blip3o_rl.model.image_tokenizer")
SERVICES = ("fastapi", "httpx")
ENGINES = ("torch", "verl", "vllm", "transformers", "diffusers")


@pytest.mark.parametrize(
    ("modules", "unneeded"),
    [
        ("blip3o_rl.rollout.recorder, blip3o_rl.rollout.evaluations", ENGINES),
        ("blip3o_rl.rollout.render_service", RENDERING),
        ("blip3o_rl.training.launch", (*ENGINES, *SERVICES, "ray", "pyarrow", "cv2")),  # the preflight is part of it
    ],
    ids=["recorder and evaluations", "renderer", "launcher"],
)
def test_a_process_does_not_import_what_it_does_not_use(modules: str, unneeded: tuple[str, ...]) -> None:
    code = f"import {modules}, json, sys; print(json.dumps([name for name in {unneeded} if name in sys.modules]))"
    environment = {**os.environ, "VERL_PLATFORM": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_agent_loops_import_neither_the_renderer_nor_vllm() -> None:
    """Whatever verl itself imports: none of this package's modules that need those libraries."""
    names = (*RENDERING[1:], "vllm")
    code = f"import blip3o_rl.rollout.agent_loop, sys; print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
