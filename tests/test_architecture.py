"""The shape of the code, checked from its own imports: layers, circles, sizes, declared dependencies."""

from __future__ import annotations

import ast
import graphlib
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LAYERS = (
    "cli", "benchmarks", "training", "mini", "sft", "rollout", "evaluation", "rewards", "monitoring", "scoring",
    "checkpoint", "report", "config", "data", "model", "http_server", "terminal", "machine", "stores", "io", "errors",
)  # fmt: skip
"""From the top down; a package imports only what stands below it."""
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "hydra": "hydra-core", "yaml": "pyyaml",
    "transfer_queue": "transferqueue",
}  # fmt: skip
"""Import name -> name on the package index, where they differ."""
OPTIONAL = {"mlflow", "mmcv", "mmdet", "paddleocr", "peft", "swanlab", "torch", "trackio", "vllm", "wandb"}
"""Installed by an extra or in an environment of their own."""


def source_files() -> dict[str, Path]:
    """Module name -> file, the linked folders under the name they are imported by."""
    files = {}
    for top, prefix in (("blip3o_rl", "blip3o_rl"), ("rewards", "blip3o_rl.rewards")):
        for file in sorted((REPOSITORY / top).rglob("*.py")):
            relative = file.relative_to(REPOSITORY / top)
            if top == "blip3o_rl" and relative.parts[0] in ("rewards", "recipes"):
                continue
            parts = [part for part in relative.with_suffix("").parts if part != "__init__"]
            files[".".join([prefix, *parts])] = file
    return files


FILES = source_files()
TREES = {module: ast.parse(file.read_text()) for module, file in FILES.items()}


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_circles_between_files() -> None:
    graph = {
        module: {name for name in imported(iter(tree.body)) if name in FILES and name != module}
        for module, tree in TREES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("package", LAYERS)
def test_imports_point_down(package: str) -> None:
    above = [f"blip3o_rl.{name}" for name in LAYERS[: LAYERS.index(package)]]
    upward = [
        f"{module} imports {name}"
        for module, tree in TREES.items()
        if module == f"blip3o_rl.{package}" or module.startswith(f"blip3o_rl.{package}.")
        for name in imported(ast.walk(tree))
        if any(name == layer or name.startswith(f"{layer}.") for layer in above)
    ]
    assert not upward


def test_only_training_and_rollout_know_verl_and_vllm() -> None:
    found = {
        module
        for module, tree in TREES.items()
        for name in imported(ast.walk(tree))
        if name.split(".")[0] in ("verl", "vllm")
    }
    assert {module.split(".")[1] for module in found} <= {"training", "rollout"}


def test_modules_can_be_read_in_one_sitting() -> None:
    lengths = {module: len(file.read_text().splitlines()) for module, file in FILES.items()}
    assert {module: length for module, length in lengths.items() if length > 320} == {}
    assert statistics.median(length for length in lengths.values() if length > 3) <= 160
    assert all(ast.get_docstring(tree) for tree in TREES.values())


def test_every_direct_import_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {
        requirement.split("[")[0].split("=")[0].split(">")[0].split("<")[0].strip().lower().replace("_", "-")
        for requirement in project["dependencies"]
    }
    tops = {name.split(".")[0] for tree in TREES.values() for name in imported(ast.walk(tree))}
    foreign = tops - set(sys.stdlib_module_names) - OPTIONAL - {"blip3o_rl"}
    missing = {name for name in foreign if DISTRIBUTIONS.get(name, name).lower().replace("_", "-") not in declared}
    assert not missing
