"""Everything that this package changes in vLLM, each change with its version and reason.

`register` is the `vllm.general_plugins` entry point, which vLLM calls in every process it starts.
`tests/rollout/test_vllm_model.py` fails when a patch is no longer needed.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from tqdm import tqdm

from blip3o_rl import machine

ARCHITECTURE = "Blip3oNextForCausalLM"
IN_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


def register() -> None:
    """Makes the policy known to vLLM and applies the patches; may be called repeatedly."""
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    from blip3o_rl.model import policy

    policy.register()
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"blip3o_rl.rollout.vllm_model:{ARCHITECTURE}")
    if current_platform.is_cpu():
        keep_cpu_weights()
    if multiprocessing.parent_process() is not None:
        end_with_parent()
        lock_bars_with_threads()


def keep_cpu_weights() -> None:
    """Lets linear layers keep their weights on a CPU (vLLM 0.24 to 0.28).

    vLLM packs each linear weight after loading and replaces the parameter by an empty one without `weight_loader`, so
    the next weight sync fails. verl packs again after each sync.
    """
    from vllm.model_executor.layers import utils

    original = utils.dispatch_cpu_unquantized_gemm
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def dispatch(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    utils.dispatch_cpu_unquantized_gemm = dispatch


def end_with_parent() -> None:
    """Lets the kernel end this process with its parent (Linux; vLLM 0.28).

    vLLM's engine core does not notice that the process that started it was killed, and keeps its memory for ever.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def lock_bars_with_threads() -> None:
    """Gives tqdm's bars in this process a lock for its threads (tqdm 4.70).

    Their own is a semaphore that has a name in processes that are spawned, as vLLM's are. It stays in /dev/shm, since
    Ray kills these processes and their resource tracker at the end of a run.
    """
    tqdm.set_lock(threading.RLock())


def executor(workers: int) -> dict[str, str]:
    """Engine arguments with which a single worker on a CPU runs in the engine's process (vLLM 0.24 to 0.28).

    vLLM would start a process for it, which imports for 6 s, takes each step's orders through 0.4 GiB of shared memory
    and leaves one core to the engine. It replaces the name `uni`, but not the class. With several workers, and with a
    binding in VLLM_CPU_OMP_THREADS_BIND, which only such a process can follow, nothing is changed. Without one the
    worker's threads run on all sockets, and its memory is on one.
    """
    binding = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    if workers != 1 or machine.vllm_device() != "cpu" or binding != "nobind":
        return {}
    return {"distributed_executor_backend": IN_ENGINE}


def use_v1_runner() -> None:
    """Chooses "model runner V1" for the engines that this process and its children make from now on.

    `state_capture` hooks into V1 only, and refuses to start on V2, which vLLM 0.28 takes for every dense model where
    Triton works, and 0.24 for listed architectures. A VLLM_USE_V2_MODEL_RUNNER that is already set stays.
    """
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
