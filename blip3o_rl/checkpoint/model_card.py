"""The README.md that goes with exported weights: licence, origin, training, use and known failures.

A card states what is recorded and nothing else. The licence is the one that the source's own README or LICENSE gave
and is inherited; where none was recorded the card says so and sends the reader to the base model, and so it does for
the parts that were frozen and have licences of their own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3o_rl import __version__
from blip3o_rl.checkpoint.upstream import UNUSED
from blip3o_rl.model import folder as model_folder

PAPER = "https://arxiv.org/abs/2510.15857"
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.-]+)", re.MULTILINE)
_USE = {
    "folder": "A model folder of blip3o-rl: `blip3o-rl generate PROMPT --model .`",
    "official": (
        "The layout of the released BLIP3o-NEXT checkpoints: the original code (`blip3oQwenForInferenceLM`) and its "
        "forks load it. `sana_config.json`, `vae_config.json` and `ta_tok_config.json` are additions, which "
        "`blip3o-rl convert` reads."
    ),
    "policy": (
        "A plain transformers folder (Qwen3): `AutoModelForCausalLM.from_pretrained`. It samples the image tokens; "
        "pictures need the renderer. The token layout is in config.json (`image_start_token_id`, ...)."
    ),
    "diffusers": (
        "`SanaPipeline.from_pretrained(FOLDER, text_encoder=None, tokenizer=None)` loads the renderer (transformer, "
        "vae, scheduler); `policy/` and `connector/` stand beside it. Give the connector's output for the policy's "
        "post-norm states (scale token and image tokens) as `prompt_embeds`, its output for zeros as "
        "`negative_prompt_embeds`, both with an attention mask of ones; `negative_prompt=None`, "
        "`sigmas=[1 - i / 30 for i in range(30)]`, `num_inference_steps=30`, `guidance_scale=2.0`, "
        "`use_resolution_binning=False`."
    ),
}
_FAILURES = (
    "Square pictures of one size only (1024 px in the released models).",
    "Objects beyond a handful, long text, hands and small faces come out wrong often.",
    "Text answers and image understanding are not preserved by the training for pictures.",
    "Reinforcement learning on one reward moves what the reward does not see: users measured that the released model "
    "trained on GenEval lost on DPG-Bench (82.36 to 81.92), and the one trained on text on GenEval.",
    "A reward can be won without its purpose, by pictures that please its detector or reader. See the guard statistics "
    "of the run's report.",
    "The original's sampler does not enforce image tokens and may stop early; blip3o-rl samples from the image tokens "
    "alone. The original's batches with left padding need the attention mask, or come out blurred.",
)


@dataclass(frozen=True)
class Training:
    """What a run did to the policy. Empty or None: not known."""

    run: str
    steps: int = 0
    rewards: dict[str, float] = field(default_factory=dict)
    """Name -> weight."""
    metrics: dict[str, str] = field(default_factory=dict)
    """What -> value, as people read them."""


def card(folder: Path, layout: str, training: Training | None = None) -> str:
    """The text of README.md.

    Args:
        folder: the model folder that is exported.
        layout: "folder", "official", "diffusers" or "policy".
        training: of the run that the weights come from.
    """
    index = json.loads((folder / model_folder.INDEX).read_text())
    converted = index.get("converted") or {}
    base = converted.get("source")
    licence = _licence(folder)
    trained = str(index.get("base") or index.get("source")).startswith("blip3o_rl.mini")
    lines = ["---", f"license: {licence or ('apache-2.0' if trained else 'other')}"]
    if licence is None and not trained:
        lines += ["license_name: see-base-model"]
    if base and "/" in base:
        lines += [f"base_model: {base}"]
    library = {"official": "transformers", "policy": "transformers", "diffusers": "diffusers"}.get(layout, "blip3o-rl")
    lines += ["pipeline_tag: text-to-image", f"library_name: {library}", "tags: [blip3o-next, qwen3, sana]", "---", ""]
    lines += [f"# {training.run if training else folder.name}", ""]
    lines += [f"A [BLIP3o-NEXT]({PAPER}) text-to-image model, written by blip3o-rl {__version__}.", ""]
    lines += ["## Use", "", _USE[layout], ""]
    lines += ["## Origin and licence", "", *_origin(index, converted, licence, trained), ""]
    lines += ["## Training", "", *_training(training), ""]
    lines += ["## Known failure modes", "", *(f"- {text}" for text in _FAILURES), ""]
    return "\n".join(lines)


def _licence(folder: Path) -> str | None:
    """The licence in the front matter of the source's README, if the conversion kept one."""
    readme = folder / UNUSED / "README.md"
    match = _LICENCE.search(readme.read_text(errors="replace")) if readme.is_file() else None
    return match.group(1).lower() if match else None


def _origin(index: dict[str, Any], converted: dict[str, Any], licence: str | None, trained: bool) -> list[str]:
    if trained:
        return [
            f"- Source: {index.get('source')}",
            "- Licence: Apache-2.0; trained from nothing on synthetic pictures.",
        ]
    told = [f"- Source: {index.get('source', 'not recorded')}"]
    if converted.get("revision"):
        told.append(f"- Base model: {converted['source']}, revision {converted['revision']}")
    elif converted:
        told.append(f"- Base model: {converted['source']}")
    if licence:
        told.append(f"- Licence: {licence}, inherited from the base model.")
    else:
        told.append("- Licence: that of the base model, of which none was recorded; look it up before you share this.")
    told.append(
        "- Parts with licences of their own: the policy starts from Qwen3 (Apache-2.0), the renderer from SANA-1.5 and "
        "DC-AE (SANA's model card names the NVIDIA licence, NSCL v2-custom), the image tokenizer is TA-Tok. Check "
        "them too."
    )
    return told


def _training(training: Training | None) -> list[str]:
    if training is None:
        return ["No training by blip3o-rl is recorded for these weights."]
    told = [f"- Run `{training.run}`: {training.steps} steps of reinforcement learning; only the policy was trained."]
    if training.rewards:
        told.append(
            "- Rewards: " + ", ".join(f"{name} (weight {weight:g})" for name, weight in training.rewards.items())
        )
    return told + [f"- {what}: {value}" for what, value in training.metrics.items()]
