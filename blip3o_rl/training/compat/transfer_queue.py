"""A change to TransferQueue 0.1.10: its controller and storage actors reserve no logical CPU.

Each reserves one for as long as it lives, which on a two-core machine is all there are; the trainer would then wait
for its own for ever, without a word. They are idle most of the time.
"""

from __future__ import annotations


def reserve_no_cpu() -> None:
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.simple_storage import SimpleStorageUnit

    for actor in (TransferQueueController, SimpleStorageUnit):
        actor._default_options["num_cpus"] = 0
