"""Two changes to TransferQueue 0.1.11: its actors reserve no logical CPU, and each run has its own.

`tests/training/test_compat.py` fails when one of them is no longer needed.
"""

from __future__ import annotations

from typing import Any

import ray


def reserve_no_cpu() -> None:
    """Controller and storage actors reserve a CPU each for as long as they live.

    On a two-core machine that is all there are; the trainer would wait for its own for ever, without a word. They are
    idle most of the time.
    """
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.simple_storage import SimpleStorageUnit

    for actor in (TransferQueueController, SimpleStorageUnit):
        actor._default_options["num_cpus"] = 0


def own_namespace() -> None:
    """The controller has one name in one namespace, so that a second run in a cluster would join the first one's.

    Here it lives in the namespace of the run's own Ray job.
    """
    from transfer_queue import interface

    if not isinstance(interface.ray, _OwnNamespace):
        interface.ray = _OwnNamespace(ray)
        interface.TransferQueueController = _OwnNamespace(interface.TransferQueueController)


class _OwnNamespace:
    """A module or an actor class; where it looks an actor up or names one, a given namespace is left out."""

    def __init__(self, original: Any):
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)

    def get_actor(self, name: str, namespace: str | None = None) -> Any:
        return self._original.get_actor(name)

    def options(self, namespace: str | None = None, **others: Any) -> Any:
        return self._original.options(**others)
