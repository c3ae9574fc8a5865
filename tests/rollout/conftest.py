"""One tiny policy, and one vLLM engine over it, for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import engines
import pytest


@pytest.fixture(scope="session")
def tiny_policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engines.write_tiny_policy(tmp_path_factory.mktemp("tiny_policy"))


@pytest.fixture(scope="session")
def tiny_engine(tiny_policy_folder: Path) -> Iterator[Any]:
    with engines.tiny_engine(tiny_policy_folder) as engine:
        yield engine
