"""An upstream BLIP3o-NEXT checkpoint -> a model folder.

Every weight is copied once, as bytes, to the place that the plan gives it: no module is built in memory. The folder
also gets `upstream/` with what only the upstream layout knows (config, tokenizer, shards, weights that the model never
uses), so that the checkpoint can be written again, key for key.

Decided here:
- The policy's generation config names only eos and pad. The one that comes with Qwen3 (top_k 20, top_p 0.95) would
  filter the sampler silently; it is kept in `upstream/`.
- Tokens behind the end of the embedding, such as the data loader's `<image>`, are taken out of the tokenizer: typed
  by a user they would index past the matrix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import GenerationConfig

from blip3o_rl.checkpoint import weights
from blip3o_rl.checkpoint.plan import Plan, make_plan
from blip3o_rl.checkpoint.source import PATTERNS, resolve
from blip3o_rl.checkpoint.staging import gigabytes, require_unused, staged
from blip3o_rl.checkpoint.ta_tok import read as read_ta_tok
from blip3o_rl.checkpoint.upstream_config import CONFIG_FILES
from blip3o_rl.checkpoint.upstream_keys import KEPT
from blip3o_rl.io import read_json, sha256, write_json
from blip3o_rl.model.folder import GENERATING, INDEX, ModelFolder, write_index

LAYOUT = "layout.json"
"""In `upstream/`: which shard each key was in, and what its index and header said."""
_WEIGHTS = {"policy": "model.safetensors", KEPT: "unused.safetensors"}


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
    """Writes the model folder of an upstream checkpoint; returns the plan. After a `UserError` nothing is left of it.

    Args:
        source: a folder, or a hub id (then with `revision` and `offline`).
        target: absent or empty.
        sana_config, vae_config, ta_tok_config: config.json files (or folders with one) of the modules. Without them
            those next to the checkpoint are taken, else the published ones.
        ta_tok: `ta_tok.pth`, for TA-Tok's flags and, in a checkpoint without vision tower, its weights.
        dry_run: check and plan, write nothing.
        tell: takes the lines of the plan and one line per file written.
    """
    require_unused(Path(target))
    configs = zip(CONFIG_FILES, (sana_config, vae_config, ta_tok_config), strict=True)
    plan = make_plan(
        resolve(source, revision, offline),
        {part: Path(path) for part, path in configs if path is not None},
        read_ta_tok(Path(ta_tok)) if ta_tok is not None else None,
    )
    for line in plan.lines():
        tell(line)
    if not dry_run:
        with staged(Path(target), plan.size) as folder:
            _write(plan, folder, tell)
    return plan


def _write(plan: Plan, folder: Path, tell: Callable[[str], None]) -> None:
    """Carries out a plan; the index comes last."""
    hashes = {name: sha256(plan.source.folder / name) for name in plan.checkpoint.metadata}
    written = {}
    for part, tensors in plan.tensors.items():
        name = f"{part}/{_WEIGHTS.get(part, 'diffusion_pytorch_model.safetensors')}"
        weights.write(folder / name, tensors)
        written[name] = sha256(folder / name)
        tell(f"wrote {name}, {gigabytes(weights.size_of(tensors))}")
    for part, module in plan.modules.items():
        if part != "policy":
            module.save_config(folder / part)
    _write_policy_files(plan, folder / "policy")
    _keep_upstream(plan, folder / KEPT)
    origin = {"source": plan.source.name, "revision": plan.source.revision}
    record = {"lm_head": plan.lm_head, "ta_tok": plan.ta_tok, "source_sha256": hashes, "sha256": written}
    write_index(folder, str(plan.source), converted=origin | record)
    ModelFolder(folder, *GENERATING).load_tokenizer()


def _write_policy_files(plan: Plan, folder: Path) -> None:
    plan.policy.architectures = ["Blip3oNextForCausalLM"]
    plan.policy.save_pretrained(folder)
    ends = {"eos_token_id": plan.policy.eos_token_id, "pad_token_id": plan.policy.pad_token_id}
    GenerationConfig(**ends).save_pretrained(folder)
    plan.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    inside = [token for token in content["added_tokens"] if token["id"] < plan.policy.vocab_size]
    if len(inside) < len(content["added_tokens"]):
        file.write_text(json.dumps(content | {"added_tokens": inside}, ensure_ascii=False))


def _keep_upstream(plan: Plan, folder: Path) -> None:
    """Keeps the source's small files, and how its weights were laid out."""
    folder.mkdir(exist_ok=True)
    for file in {file for pattern in PATTERNS[1:] for file in plan.source.folder.glob(pattern) if file.is_file()}:
        generated = file.name.endswith(".index.json") or file.name in CONFIG_FILES.values()
        if not generated and file.stat().st_size < 64 * 2**20:
            shutil.copyfile(file, folder / file.name)
    layout = {
        "lm_head": plan.lm_head,
        "files": plan.checkpoint.metadata,
        "weight_map": plan.checkpoint.places,
        "index_metadata": plan.checkpoint.index_metadata,
    }
    write_json(folder / LAYOUT, layout)


def keep_origin(base: Path, folder: Path) -> None:
    """Records in a complete model folder, which was trained from `base`, where `base` came from.

    An `upstream/` is copied, so that the trained weights can be written in the upstream layout too.
    """
    origin, index = read_json(base / INDEX), read_json(folder / INDEX)
    if (base / KEPT).is_dir():
        shutil.copytree(base / KEPT, folder / KEPT, dirs_exist_ok=True)
    index["base"] = origin.get("base") or origin.get("source")
    if "converted" in origin:
        index["converted"] = {name: value for name, value in origin["converted"].items() if name != "sha256"}
    write_json(folder / INDEX, index)
