"""How long commands and the processes of a run take to begin: each in a fresh interpreter, imports alone.

A run's processes also wait for Ray, read weights and compile; their imports are what this package can make smaller.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time

from blip3o_rl.benchmarks.measure import Timing
from blip3o_rl.errors import UserError

COMMANDS = {
    "--help": ["--help"],
    "train: no such recipe": ["train", "recipes/shapez"],
    "train: a value out of range": ["train", "recipes/shapes", "render.steps=0"],
    "train: no such model": ["train", "recipes/shapes", "model.folder=/nowhere"],
    "generate: no such model": ["generate", "a photo", "--model", "/nowhere"],
}
PROCESSES = {
    "launcher": "blip3o_rl.training.launch",
    "plug-in of verl, in each of its processes": "blip3o_rl.training.verl_plugin",
    "agent-loop worker": "blip3o_rl.rollout.agent_loop",
    "recorder": "blip3o_rl.rollout.recorder",
    "renderer": "blip3o_rl.rollout.render_service",
    "vLLM server": "blip3o_rl.rollout.server",
    "reward service": "blip3o_rl.scoring.remote.service",
}
"""What a process of a run is -> the module that it begins with."""
HEAVY = ("torch", "transformers", "diffusers", "vllm", "verl", "ray", "ray.serve", "pandas", "matplotlib", "scipy")
_TAIL = (
    "import json, re, resource, sys; used = resource.getrusage(resource.RUSAGE_SELF);"
    "peak = int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]);"  # ru_maxrss has the parent's
    "print(json.dumps({'cpu_s': used.ru_utime + used.ru_stime, 'peak_mib': peak / 1024,"
    f"'modules': len(sys.modules), 'heavy': [name for name in {HEAVY} if name in sys.modules]}}))"
)


def measure(repetitions: int) -> list[Timing]:
    """Times all commands and processes `repetitions` times, each once per round."""
    codes = {
        ("command", name): f"from blip3o_rl.cli import main; main.run({words})" for name, words in COMMANDS.items()
    }
    codes |= {("process", name): f"import {module}" for name, module in PROCESSES.items()}
    timings = {key: Timing(*key, images=1, seconds=[]) for key in codes}
    for _ in range(repetitions):
        for key, code in codes.items():
            start = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", f"{code}\n{_TAIL}"], capture_output=True, text=True)
            timings[key].seconds.append(time.perf_counter() - start)
            if done.returncode:
                last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
                raise UserError(f"bench startup: {key[1]}: {''.join(last)}; see blip3o-rl doctor")
            timings[key].notes.update(json.loads(done.stdout.splitlines()[-1]))
    return list(timings.values())
