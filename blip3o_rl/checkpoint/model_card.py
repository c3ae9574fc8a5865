"""The README.md that goes with exported weights: license, origin, training, use and known failures.

The text is in model_card.md, a template. A card states what is recorded and nothing else. The license is inherited from
the front matter of the source's own README; where none was recorded, and for the frozen parts with licenses of their
own, the card sends the reader to the base model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from omegaconf import OmegaConf

from blip3o_rl import __version__
from blip3o_rl.checkpoint.upstream_keys import KEPT
from blip3o_rl.io import read_json
from blip3o_rl.model import folder as model_folder
from blip3o_rl.report.checkpoints import step_of
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.summary import summarize

CARD = "README.md"
_TEMPLATE = Path(__file__).with_suffix(".md")
_LICENSE = re.compile(r"^license:\s*[\"']?([\w.-]+)", re.MULTILINE)


@dataclass(frozen=True)
class Training:
    """What a run did to the model. Empty: not known."""

    run: str
    steps: int = 0
    rewards: dict[str, float] = field(default_factory=dict)
    """Name -> weight."""
    metrics: dict[str, str] = field(default_factory=dict)
    """What -> value, as people read them."""
    method: str = "reinforcement learning"
    trained: str = "only the policy was trained"


def training_of(checkpoint: Path) -> Training | None:
    """What the run of a checkpoint, or of the model folder that it wrote, did; None if its run folder is not there."""
    near = (checkpoint, *checkpoint.resolve().parents[:3])
    run = next((path for path in near if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()), None)
    if run is None:
        return None
    folder = RunFolder.open(run)
    config: Any = OmegaConf.load(folder.config)
    summary = summarize(folder)
    step = step_of(checkpoint) or summary.steps
    if "reward" not in config:
        trained = f"the policy and the renderer ({config.train.trainable}) were trained"
        return Training(summary.run, step, method="supervised fine-tuning", trained=trained)
    metrics, last = {}, step == summary.steps  # an earlier checkpoint was not measured
    if last and summary.before is not None and summary.after is not None:
        metrics["Score"] = f"{summary.before:.3f} before, {summary.after:.3f} after ({summary.measured_by})"
    if last and summary.kl is not None:
        metrics["KL to the base policy"] = f"{summary.kl:.4f} per token, last step"
    rewards = {str(name): entry or {} for name, entry in (config.reward.get("rewards") or {}).items()}
    weights = {name: float(e.get("weight", 1.0)) for name, e in rewards.items() if not e.get("held_out")}
    return Training(summary.run, step, weights, metrics)


def card(folder: Path, format: str, training: Training | None = None) -> str:
    """The text of README.md for a model folder that is exported as "folder", "upstream", "diffusers" or "policy"."""
    index = read_json(folder / model_folder.INDEX)
    converted = index.get("converted") or {}
    readme = folder / KEPT / CARD
    license = _LICENSE.search(readme.read_text(errors="replace")) if readme.is_file() else None
    template = jinja2.Template(_TEMPLATE.read_text(), trim_blocks=True, undefined=jinja2.StrictUndefined)
    return template.render(
        title=training.run if training else folder.name,
        version=__version__,
        format=format,
        training=training,
        source=index.get("source", "not recorded"),
        base=converted.get("source", ""),
        revision=converted.get("revision"),
        license=license.group(1).lower() if license else None,
        own=str(index.get("base") or index.get("source")).startswith("blip3o_rl.mini"),
    )
