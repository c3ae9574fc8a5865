"""What a conversion is going to write: an upstream checkpoint, checked against its configs without loading a weight.

Headers, configs and the tokenizer are compared with the modules that this package builds. A checkpoint that does not
fit is refused here, with every key that is missing, unexpected or of the wrong shape.

Decided here:
- The output matrix (`lm_head.weight`) is compared bit for bit with the embedding. A copy is dropped and the policy is
  tied; one that differs is kept and used whatever `tie_word_embeddings` says, since it is what was trained, with a
  warning. Upstream code under transformers 4 would replace it by the embedding where the config says tied.
- TA-Tok's flags come from `ta_tok.pth` or its config. Where neither says whether codes are compared as directions
  (`l2_normalized`), the folder says that it is not known, and its image tokenizer refuses to load.
- SANA's and the autoencoder's configs are those given, else those next to the checkpoint, else the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from blip3o_rl.checkpoint import upstream_config, upstream_keys, weights
from blip3o_rl.checkpoint.source import Source
from blip3o_rl.checkpoint.staging import gigabytes
from blip3o_rl.checkpoint.ta_tok import TaTokFile, read_ta_tok_config
from blip3o_rl.checkpoint.upstream_config import CONFIG_FILES, read_config
from blip3o_rl.checkpoint.upstream_keys import EMBEDDING, KEPT, LM_HEAD, TOWER, Shape
from blip3o_rl.checkpoint.weights import Checkpoint, compact, size_of
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.devices import dtype_name
from blip3o_rl.model.image_tokenizer import check_config
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.token_layout import CHATML, TokenLayout


@dataclass
class Plan:
    """What a conversion is going to write, checked."""

    source: Source
    checkpoint: Checkpoint
    layout: TokenLayout
    policy: Blip3oNextConfig
    modules: dict[str, Any]
    """Part of the model folder -> module on the meta device."""
    tensors: dict[str, dict[str, torch.Tensor]]
    """Part -> name there -> weight, mapped to its file."""
    tokenizer: Any
    lm_head: str
    ta_tok: dict[str, Any] | None = None
    """Flags of ta_tok.pth, if it was given."""
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all weights to write."""
        return sum(map(size_of, self.tensors.values()))

    def lines(self) -> list[str]:
        """The plan as text, one line per part, then the warnings."""
        stored, layout = self.checkpoint.tensors, self.layout
        lines = [f"source: {self.source}, {len(stored)} tensors, {gigabytes(size_of(stored))}"]
        for part, tensors in sorted(self.tensors.items()):
            dtypes = "/".join(sorted({dtype_name(tensor.dtype) for tensor in tensors.values()}))
            lines.append(f"{part}: {len(tensors)} tensors, {gigabytes(size_of(tensors))}, {dtypes}")
        lines.append(
            f"tokens: {layout.num_image_tokens} image tokens from id {layout.image_start_token_id}, grid "
            f"{layout.grid} x {layout.grid}, vocabulary {self.policy.vocab_size} x {self.policy.hidden_size}"
        )
        return [*lines, f"lm_head.weight: {self.lm_head}", *(f"warning: {text}" for text in self.warnings)]


def make_plan(source: Source, configs: Mapping[str, Path], ta_tok: TaTokFile | None = None) -> Plan:
    """Checks an upstream checkpoint and plans its conversion; reads no weight but `lm_head.weight` and the embedding.

    `configs` are files for parts of `CONFIG_FILES`, as far as given.
    """
    folder = source.folder
    if (folder / model_folder.INDEX).is_file() and (folder / "policy").is_dir():
        raise UserError(f"{folder}: is a model folder already; give an upstream checkpoint")
    fields = read_config(folder / "config.json")
    checkpoint = weights.open_folder(folder)
    stored = checkpoint.tensors
    _require_blip3o(fields, stored)
    files = {part: folder / name for part, name in CONFIG_FILES.items() if (folder / name).is_file()} | dict(configs)
    has_tower = any(key.startswith(TOWER) for key in stored)
    image_tokenizer = _image_tokenizer_config(files, ta_tok) if has_tower or ta_tok else None
    tokenizer = _load_tokenizer(source)
    sizes = {"image_size": 384, "patch_size": 14} | (image_tokenizer or {})
    layout = upstream_config.token_layout(fields, tokenizer, int(sizes["image_size"]) // int(sizes["patch_size"]))
    lm_head, differing = upstream_keys.lm_head_kind(stored)
    policy = upstream_config.policy_config(
        fields,
        layout,
        tied=lm_head != "separate",
        dtype=dtype_name(stored[EMBEDDING].dtype) if EMBEDDING in stored else None,
        eos_token_id=fields.get("eos_token_id", tokenizer.eos_token_id),
        pad_token_id=tokenizer.pad_token_id,
    )
    modules = upstream_keys.build_modules(
        policy,
        read_config(files["renderer/transformer"]) if "renderer/transformer" in files else upstream_config.SANA,
        read_config(files["renderer/vae"]) if "renderer/vae" in files else upstream_config.DC_AE,
        image_tokenizer,
        upstream_config.reference_flags(fields, stored),
    )
    manifest = upstream_keys.manifest(modules)
    own = {key: shape for key, shape in manifest.items() if has_tower or not key.startswith(TOWER)}
    if differences := upstream_keys.differences(own, stored):
        raise UserError(
            f"{folder}: its weights are not those of its configs: {differences}; "
            "give a whole checkpoint, and the configs of its SANA and autoencoder if they are not the published ones"
        )
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in stored.items():
        part, name = upstream_keys.place(key, own) or (KEPT, key)
        if key != LM_HEAD or lm_head == "separate":
            tensors.setdefault(part, {})[name] = tensor
    if ta_tok and not has_tower:
        tensors["image_tokenizer"] = _ta_tok_weights(ta_tok, manifest)
    tokens = layout.num_image_tokens
    codes = modules["image_tokenizer"].config.num_image_tokens if image_tokenizer else tokens
    if codes != tokens:
        raise UserError(f"TA-Tok has {codes} codes, the policy {tokens} image tokens; they are not of the same model")
    flags = ta_tok.flags if ta_tok else None
    plan = Plan(source, checkpoint, layout, policy, modules, tensors, tokenizer, lm_head, flags)
    plan.warnings = list(_warnings(plan, fields, differing, has_tower))
    return plan


def _require_blip3o(config: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """Raises `UserError` for a language model or another checkpoint given by mistake."""
    prefixes = ("model.diffusion_connector.", "model.sana.", "model.sana_vae.")
    if not any(key.startswith(prefixes) for key in keys):
        kind = "a text-only language model" if EMBEDDING in keys else "a checkpoint of another kind"
        what = f"so this is {kind} ({config.get('model_type', 'no model_type')})"
        raise UserError(f"no key begins with {', '.join(prefixes)}, {what}; give an upstream BLIP3o-NEXT checkpoint")


def _image_tokenizer_config(files: Mapping[str, Path], ta_tok: TaTokFile | None) -> dict[str, Any]:
    """TA-Tok's config: sizes from a file, flags from `ta_tok.pth`; `l2_normalized` is None if nothing says it."""
    file = files.get("image_tokenizer")
    config = (read_ta_tok_config(file) if file else {"l2_normalized": None}) | (ta_tok.config if ta_tok else {})
    check_config(config, file or "ta_tok.pth")
    return config


def _ta_tok_weights(ta_tok: TaTokFile, manifest: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    expected = {key.removeprefix(TOWER): shape for key, shape in manifest.items() if key.startswith(TOWER)}
    found = {name: tuple(tensor.shape) for name, tensor in ta_tok.weights.items()}
    if wrong := [name for name, shape in expected.items() if found.get(name) != shape]:
        raise UserError(f"ta_tok.pth: missing or of the wrong shape: {compact(wrong)}; give its config too")
    return {name: ta_tok.weights[name] for name in expected}


def _load_tokenizer(source: Source) -> Any:
    """The tokenizer of an upstream checkpoint; a config is passed so that its `model_type` is never looked at."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.folder, config=Blip3oNextConfig(), padding_side="left")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{source.folder}: its tokenizer cannot be loaded ({error}); give its files too") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    return tokenizer


def _warnings(plan: Plan, fields: Mapping[str, Any], differing: int, has_tower: bool) -> Iterator[str]:
    tied = fields.get("tie_word_embeddings")
    if plan.lm_head == "separate":
        yield (
            f"lm_head.weight differs from the embedding in {differing} of {plan.policy.vocab_size} rows; it is kept as "
            f"the output matrix (config.json: tie_word_embeddings {tied})"
        )
    if plan.lm_head == "absent" and tied is False:
        yield "lm_head.weight is absent although tie_word_embeddings is false; the embedding is used"
    cannot = "so the folder cannot tokenize images (editing, fine-tuning); give ta_tok.pth"
    if "image_tokenizer" not in plan.tensors:
        yield f"no vision tower, {cannot} to add it"
    elif plan.modules["image_tokenizer"].config.l2_normalized is None:
        yield f"TA-Tok: l2_normalized is not in the checkpoint, {cannot}, which says it"
    elif plan.ta_tok is not None and has_tower:
        yield "TA-Tok: flags from ta_tok.pth, weights from the checkpoint"
    behind = [token for token, number in plan.tokenizer.get_vocab().items() if number >= plan.policy.vocab_size]
    if behind:
        yield f"tokenizer: {', '.join(behind)} behind the end of the embedding, left out"
