"""An official BLIP3o-NEXT checkpoint -> a model folder.

Every weight is copied once, as bytes, to the place that the plan gives it: no module is built in memory. Beside the
parts that this package reads, the folder gets `official/`: what only the original layout knows (its config, tokenizer
and shard layout, and weights that the model never uses), so that the checkpoint can be written again, key for key.

Decided here:
- The policy's generation config names only eos and pad. The one that comes with Qwen3 (top_k 20, top_p 0.95) would
  filter the sampler silently; it is kept in `official/`.
- Tokens behind the end of the embedding, such as the data loader's `<image>`, are taken out of the tokenizer: typed
  by a user they would index past the matrix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from blip3o_rl import __version__
from blip3o_rl.checkpoint import tensor_files
from blip3o_rl.checkpoint.import_plan import CONFIG_FILES, Plan, make_plan, read_config, size_of
from blip3o_rl.checkpoint.source import resolve
from blip3o_rl.checkpoint.staging import gigabytes, require_unused, staged
from blip3o_rl.checkpoint.ta_tok_file import read as read_ta_tok
from blip3o_rl.checkpoint.upstream import UNUSED
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.renderer import REFERENCE_CONNECTOR

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
LAYOUT = "layout.json"
"""In `official/`: which shard each key was in, and what its index and header said."""
KEPT = ("*.json", "*.txt", "*.jinja", "README.md", "LICENSE*", "NOTICE*")
"""Files of a source that are kept in `official/`, apart from weights and index."""
_KEPT_LIMIT = 64 * 2**20
_PARTS = (*model_folder.PARTS, f"renderer/{REFERENCE_CONNECTOR}")
_WEIGHTS = {"policy": "model.safetensors", UNUSED: "unused.safetensors"}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    revision: str | None = None,
    offline: bool = False,
    sana_config: str | Path | None = None,
    vae_config: str | Path | None = None,
    ta_tok_config: str | Path | None = None,
    ta_tok: str | Path | None = None,
    dry_run: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> Plan:
    """Writes the model folder of an official checkpoint.

    Args:
        source: a folder, or a hub id.
        target: the model folder; absent or empty.
        revision, offline: of a hub id.
        sana_config, vae_config, ta_tok_config: config.json files (or folders with one) of the modules. Without them
            those beside the checkpoint are taken, else those of the released models.
        ta_tok: `ta_tok.pth`, for TA-Tok's flags and, in a checkpoint without vision tower, its weights.
        dry_run: check and plan, write nothing.
        tell: takes the lines of the plan and one line a file written.

    Returns:
        The plan that was carried out.

    Raises:
        UserError: the source, a config, the target or the disk; nothing is left of the target then.
    """
    require_unused(Path(target))
    configs = {"sana": sana_config, "vae": vae_config, "image_tokenizer": ta_tok_config}
    plan = make_plan(
        resolve(source, revision, offline),
        {name: read_config(path) for name, path in configs.items() if path is not None},
        read_ta_tok(Path(ta_tok)) if ta_tok is not None else None,
    )
    for line in plan.lines():
        tell(line)
    if not dry_run:
        carry_out(plan, Path(target), tell)
    return plan


def carry_out(plan: Plan, target: Path, tell: Callable[[str], None] = lambda line: None) -> Path:
    """Writes the model folder of a plan; the index last, and the folder appears when it is complete.

    Raises:
        UserError: the target is in use, the disk has no room, or a file cannot be read or written.
    """
    with staged(target, plan.size) as folder:
        hashes = {file.name: tensor_files.sha256(file) for file in tensor_files.weight_files(plan.source.folder)}
        written = {}
        for part, tensors in plan.tensors.items():
            name = f"{part}/{_WEIGHTS.get(part, DIFFUSERS_WEIGHTS)}"
            written[name] = tensor_files.write(folder / name, tensors)
            tell(f"wrote {name}, {gigabytes(size_of(tensors))}")
        for part, module in plan.modules.items():
            if part != "policy":
                module.save_config(folder / part)
        _write_policy_files(plan, folder / "policy")
        _keep_official(plan, folder / UNUSED)
        index = {
            "format": model_folder.FORMAT,
            "parts": [part for part in _PARTS if (folder / part).is_dir()],
            "source": str(plan.source),
            "blip3o_rl": __version__,
            "torch": torch.__version__,
            "converted": {
                "source": plan.source.name,
                "revision": plan.source.revision,
                "lm_head": plan.lm_head,
                "ta_tok": plan.ta_tok,
                "source_sha256": hashes,
                "sha256": written,
            },
        }
        write_json(folder / model_folder.INDEX, index)
        model_folder.check(folder, tuple(p for p in model_folder.PARTS if (folder / p).is_dir()))
        model_folder.load_tokenizer(folder)
    return target


def _write_policy_files(plan: Plan, folder: Path) -> None:
    plan.policy.architectures = ["Blip3oNextForCausalLM"]
    plan.policy.save_pretrained(folder)
    GenerationConfig(
        eos_token_id=plan.policy.eos_token_id, pad_token_id=plan.policy.pad_token_id
    ).save_pretrained(folder)  # fmt: skip
    plan.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    inside = [token for token in content["added_tokens"] if token["id"] < plan.policy.vocab_size]
    if len(inside) < len(content["added_tokens"]):
        content["added_tokens"] = inside
        file.write_text(json.dumps(content, ensure_ascii=False))


def _keep_official(plan: Plan, folder: Path) -> None:
    """Keeps the source's small files, and how its weights were laid out."""
    folder.mkdir(exist_ok=True)
    for pattern in KEPT:
        for file in sorted(plan.source.folder.glob(pattern)):
            wanted = file.is_file() and not file.name.endswith(".index.json") and file.name not in CONFIG_FILES.values()
            if wanted and file.stat().st_size < _KEPT_LIMIT:
                (folder / file.name).write_bytes(file.read_bytes())
    files = tensor_files.weight_files(plan.source.folder)
    indices = [json.loads(file.read_text()) for file in plan.source.folder.glob("*.safetensors.index.json")]
    write_json(
        folder / LAYOUT,
        {
            "lm_head": plan.lm_head,
            "files": {file.name: tensor_files.read_header(file)[1] for file in files},
            "weight_map": {key: tensor.file.name for key, tensor in plan.stored.items()},
            "index_metadata": indices[0].get("metadata") if indices else None,
        },
    )


def keep_origin(base: Path, folder: Path) -> None:
    """Lets a model folder that was trained from another one remember where that one came from.

    Args:
        base: the model folder that training began from. Its `official/`, if any, is copied, so that the trained
            weights can be written in the original layout too.
        folder: a complete model folder.
    """
    origin = json.loads((base / model_folder.INDEX).read_text())
    if (base / UNUSED).is_dir():
        shutil.copytree(base / UNUSED, folder / UNUSED, dirs_exist_ok=True)
    index = json.loads((folder / model_folder.INDEX).read_text())
    index["base"] = origin.get("base") or origin.get("source")
    if "converted" in origin:
        index["converted"] = {name: value for name, value in origin["converted"].items() if name != "sha256"}
    temporary = folder / (model_folder.INDEX + ".part")
    write_json(temporary, index)
    temporary.replace(folder / model_folder.INDEX)


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file as people read it."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
