"""The README.md that goes with exported weights: licence, origin, training, use and known failures.

A card states what is recorded and nothing else. The licence is the one in the front matter of the source's own README
and is inherited; where none was recorded the card says so and sends the reader to the base model, and so it does for
the parts that were frozen and have licences of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from blip3o_rl import __version__
from blip3o_rl.checkpoint.upstream_keys import kept_folder
from blip3o_rl.io import read_json
from blip3o_rl.model import folder as model_folder
from blip3o_rl.report.checkpoints import step_of
from blip3o_rl.report.run_folder import RunFolder
from blip3o_rl.report.summary import summarise

CARD = "README.md"
PAPER = "https://arxiv.org/abs/2510.15857"
REINFORCEMENT, SUPERVISED = "reinforcement learning", "supervised fine-tuning"
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.-]+)", re.MULTILINE)
_LIBRARIES = {"upstream": "transformers", "policy": "transformers", "diffusers": "diffusers"}
_USE = {
    "folder": "A model folder of blip3o-rl: `blip3o-rl generate PROMPT --model .`",
    "upstream": (
        "The layout of Salesforce's BLIP3o-NEXT checkpoints: upstream's code (`blip3oQwenForInferenceLM`) and its "
        "forks load it. `sana_config.json`, `vae_config.json` and `ta_tok_config.json` are additions, which "
        "`blip3o-rl convert` reads."
    ),
    "policy": (
        "A plain transformers folder (Qwen3): `AutoModelForCausalLM.from_pretrained`. It samples the image tokens; "
        "images need the renderer. The token layout is in config.json (`image_start_token_id`, ...)."
    ),
    "diffusers": (
        "`SanaPipeline.from_pretrained(FOLDER, text_encoder=None, tokenizer=None)` loads the renderer (transformer, "
        "vae, scheduler); `policy/` and `connector/` are next to it. Give the connector's output for the policy's "
        "post-norm states (scale token and image tokens) as `prompt_embeds`, its output for zeros as "
        "`negative_prompt_embeds`, both with an attention mask of ones; `negative_prompt=None`, "
        "`sigmas=[1 - i / 30 for i in range(30)]`, `num_inference_steps=30`, `guidance_scale=2.0`, "
        "`use_resolution_binning=False`."
    ),
}
_FAILURES = (
    "Square images of one size only (1024 px in the published models).",
    "Objects beyond a handful, long text, hands and small faces come out wrong often.",
    "Text answers and image understanding are not preserved by the training for images.",
    "Upstream's sampler does not enforce image tokens and may stop early; blip3o-rl samples from the image tokens "
    "alone. Upstream's batches with left padding need the attention mask, or come out blurred.",
)
_FAILURES_OF_REWARDS = (
    "Reinforcement learning on one reward changes what the reward does not measure: users measured that the published "
    "model trained on GenEval lost on DPG-Bench (82.36 to 81.92), and the one trained on text on GenEval.",
    "A reward can be won without its purpose, by images that please its detector or reader. See the image statistics "
    "of the run's report.",
)


@dataclass(frozen=True)
class Training:
    """What a run did to the model. Empty or None: not known."""

    run: str
    steps: int = 0
    rewards: dict[str, float] = field(default_factory=dict)
    """Name -> weight."""
    metrics: dict[str, str] = field(default_factory=dict)
    """What -> value, as people read them."""
    method: str = REINFORCEMENT
    trained: str = "only the policy was trained"


def training_of(checkpoint: Path) -> Training | None:
    """What the run of a checkpoint, or of the model folder that it wrote, did; None if its run folder is not there."""
    near = (checkpoint, *checkpoint.resolve().parents[:2])
    found = [path for path in near if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir()]
    if not found:
        return None
    folder = RunFolder.open(found[0])
    config: Any = OmegaConf.load(folder.config)
    summary = summarise(folder)
    step = step_of(checkpoint) or summary.steps
    if "reward" not in config:
        trained = OmegaConf.select(config, "train.trainable") or "parts not recorded"
        return Training(
            summary.run, step, method=SUPERVISED, trained=f"the policy and the renderer ({trained}) were trained"
        )
    metrics = {}
    if step == summary.steps:  # an earlier checkpoint was not measured
        if summary.before is not None and summary.after is not None:
            metrics["Score"] = f"{summary.before:.3f} before, {summary.after:.3f} after ({summary.measured_by})"
        if summary.kl is not None:
            metrics["KL to the base policy"] = f"{summary.kl:.4f} per token, last step"
    rewards = {str(name): entry or {} for name, entry in (config.reward.get("rewards") or {}).items()}
    weights = {name: float(e.get("weight", 1.0)) for name, e in rewards.items() if not e.get("held_out")}
    return Training(summary.run, step, weights, metrics)


def card(folder: Path, format: str, training: Training | None = None) -> str:
    """The text of README.md.

    Args:
        folder: the model folder that is exported.
        format: "folder", "upstream", "diffusers" or "policy".
        training: of the run that the weights come from.
    """
    index = read_json(folder / model_folder.INDEX)
    base = (index.get("converted") or {}).get("source", "")
    own = str(index.get("base") or index.get("source")).startswith("blip3o_rl.mini")
    licence = _licence(folder)
    lines = ["---", f"license: {licence or ('apache-2.0' if own else 'other')}"]
    if licence is None and not own:
        lines += ["license_name: see-base-model"]
    if "/" in base:
        lines += [f"base_model: {base}"]
    library = _LIBRARIES.get(format, "blip3o-rl")
    lines += ["pipeline_tag: text-to-image", f"library_name: {library}", "tags: [blip3o-next, qwen3, sana]", "---", ""]
    lines += [f"# {training.run if training else folder.name}", ""]
    lines += [f"A [BLIP3o-NEXT]({PAPER}) text-to-image model, written by blip3o-rl {__version__}.", ""]
    lines += ["## Use", "", _USE[format], ""]
    lines += ["## Origin and licence", "", *_origin(index, licence, own), ""]
    lines += ["## Training", "", *_training(training), ""]
    supervised = training is not None and training.method == SUPERVISED
    failures = _FAILURES if supervised else (*_FAILURES, *_FAILURES_OF_REWARDS)
    lines += ["## Known failure modes", "", *(f"- {text}" for text in failures), ""]
    return "\n".join(lines)


def _licence(folder: Path) -> str | None:
    """The licence in the front matter of the source's README, if the conversion kept one."""
    readme = kept_folder(folder) / CARD
    match = _LICENCE.search(readme.read_text(errors="replace")) if readme.is_file() else None
    return match.group(1).lower() if match else None


def _origin(index: dict[str, Any], licence: str | None, own: bool) -> list[str]:
    told = [f"- Source: {index.get('source', 'not recorded')}"]
    if own:
        return [*told, "- Licence: Apache-2.0; trained from nothing on synthetic images."]
    converted = index.get("converted") or {}
    if converted:
        revision = f", revision {converted['revision']}" if converted.get("revision") else ""
        told.append(f"- Base model: {converted['source']}{revision}")
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
    told = [f"- Run `{training.run}`: {training.steps} steps of {training.method}; {training.trained}."]
    if training.rewards:
        weighted = (f"{name} (weight {weight:g})" for name, weight in training.rewards.items())
        told.append(f"- Rewards: {', '.join(weighted)}")
    return told + [f"- {what}: {value}" for what, value in training.metrics.items()]
