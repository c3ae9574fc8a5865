"""A reward file finds the modules next to it, and no others of the same name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from blip3o_rl.scoring.api import Sample
from blip3o_rl.scoring.build import build_rubric

FORMS = {
    "absolute": "from helper_mod import level\n\ndef f(image):\n    return level()\n",
    "relative": "from .helper_mod import level\n\ndef f(image):\n    return level()\n",
    "late": "def f(image):\n    from late_helper_mod import level\n    return level()\n",
    "package": "import helper_pkg.inner\n\ndef f(image):\n    return helper_pkg.inner.level()\n",
}


def write(folder: Path, form: str, value: float, file: str = "reward.py") -> str:
    """A reward that returns what its helper returns; gives its path."""
    (folder / "helper_pkg").mkdir(parents=True, exist_ok=True)
    (folder / "helper_pkg" / "__init__.py").touch()
    for helper in ("helper_mod.py", "late_helper_mod.py", "helper_pkg/inner.py"):
        (folder / helper).write_text(f"def level():\n    return {value}\n")
    (folder / file).write_text(FORMS[form])
    return f"{folder / file}:f"


def scores(**paths: str) -> dict[str, float]:
    rubric = build_rubric({name: {"path": path} for name, path in paths.items()})
    return dict(rubric.score([Sample("s", "", np.zeros((4, 4, 3), np.uint8))])[0].components)


@pytest.mark.parametrize("form", FORMS)
def test_a_reward_file_imports_the_module_next_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if "helper_" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir("/")
    assert scores(mine=write(tmp_path, form, 0.25)) == {"mine": 0.25}


@pytest.mark.parametrize("form", ["absolute", "relative", "package"])
def test_helpers_of_one_name_in_two_folders_do_not_mix(tmp_path: Path, form: str) -> None:
    paths = {name: write(tmp_path / name, form, value) for name, value in (("a", 1.0), ("b", 2.0))}
    assert scores(**paths) == {"a": 1.0, "b": 2.0}
    assert scores(**dict(reversed(paths.items()))) == {"a": 1.0, "b": 2.0}


def test_a_file_in_a_package_imports_that_by_name(tmp_path: Path) -> None:
    paths = {}
    for name, value in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / name / "my_rewards"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "levels.py").write_text(f"LEVEL = {value}\n")
        (folder / "reward.py").write_text("from my_rewards.levels import LEVEL\n\ndef f(image):\n    return LEVEL\n")
        paths[name] = f"{folder / 'reward.py'}:f"
    assert scores(**paths) == {"a": 1.0, "b": 2.0}


def test_a_file_may_have_the_name_of_a_loaded_module_next_to_it(tmp_path: Path) -> None:
    """A reward file in a folder with an own `numpy/` or `blip3o_rl/` does not replace the installed ones."""
    for name in ("numpy", "blip3o_rl"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    source = (
        "import numpy\nfrom blip3o_rl.scoring.api import Score\n\ndef f(image):\n    return Score(numpy.mean(image))\n"
    )
    (tmp_path / "reward.py").write_text(source)
    assert scores(mine=f"{tmp_path / 'reward.py'}:f") == {"mine": 0.0}


def test_the_process_of_a_service_finds_it_too(tmp_path: Path) -> None:
    path = write(tmp_path, "absolute", 0.5)
    code = (
        "import sys; from blip3o_rl.scoring.remote.service import RewardService; "
        "print(*RewardService({'mine': {'path': sys.argv[1]}}).queues)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], cwd="/", capture_output=True, text=True)
    assert done.stdout.strip() == "mine", done.stderr


@pytest.mark.slow
def test_a_ray_worker_finds_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.chdir("/")
    paths = {form: write(tmp_path / form, form, 0.5) for form in FORMS}
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:

        @ray.remote
        class Worker:
            def score(self, config: dict[str, dict[str, str]]) -> dict[str, float]:
                sample = Sample("s", "", np.zeros((4, 4, 3), np.uint8))
                return dict(build_rubric(config).score([sample])[0].components)

        config = {form: {"path": path} for form, path in paths.items()}
        assert ray.get(Worker.remote().score.remote(config)) == dict.fromkeys(FORMS, 0.5)
    finally:
        ray.shutdown()
