"""What a conversion is going to write: an official checkpoint, checked against its configs without loading a weight.

Headers, configs and the tokenizer are read and compared with the modules that this package builds; every key gets its
place in the model folder. A checkpoint that does not fit is refused here, with every key that is missing, unexpected
or of the wrong shape, before anything is written.

Decided here:
- The output matrix (`lm_head.weight`) is compared bit for bit with the embedding. A copy is dropped and the policy is
  tied; one that differs is kept and used whatever `tie_word_embeddings` says, since it is what was trained, with a
  warning. The original under transformers 4 would replace it by the embedding where the config says tied.
- TA-Tok's flags come from `ta_tok.pth`; without it codes are compared as vectors, with a warning.
- SANA's and the autoencoder's configs are those given, else those beside the checkpoint, else the released models'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from blip3o_rl.checkpoint import tensor_files
from blip3o_rl.checkpoint import upstream as official
from blip3o_rl.checkpoint import upstream_sizes as released
from blip3o_rl.checkpoint.source import Source
from blip3o_rl.checkpoint.staging import gigabytes
from blip3o_rl.checkpoint.ta_tok_file import TaTokFile
from blip3o_rl.checkpoint.tensor_files import TORCH_NAMES, Stored, Tensor
from blip3o_rl.checkpoint.upstream import LM_HEAD, TOWER, UNUSED, Architecture
from blip3o_rl.errors import UserError
from blip3o_rl.model import folder as model_folder
from blip3o_rl.model.policy import Blip3oNextConfig
from blip3o_rl.model.token_layout import CHATML, TokenLayout

CONFIG_FILES = {"sana": "sana_config.json", "vae": "vae_config.json", "image_tokenizer": "ta_tok_config.json"}
"""Looked for beside an official checkpoint; an export writes them there."""


@dataclass
class Plan:
    """What a conversion is going to write, checked."""

    source: Source
    layout: TokenLayout
    policy: Blip3oNextConfig
    modules: dict[str, Any]
    """Part of the model folder -> module on the meta device."""
    tensors: dict[str, dict[str, Tensor]]
    """Part -> name there -> weight."""
    tokenizer: Any
    stored: dict[str, Stored]
    lm_head: str
    ta_tok: dict[str, Any] | None = None
    """Flags of ta_tok.pth, if it was given."""
    warnings: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all weights to write."""
        return sum(tensor.size for tensors in self.tensors.values() for tensor in tensors.values())

    def lines(self) -> list[str]:
        """The plan as text, one line a part, then the warnings."""
        told = [f"source: {self.source}, {len(self.stored)} tensors, {gigabytes(size_of(self.stored))}"]
        for part, tensors in sorted(self.tensors.items()):
            dtypes = "/".join(sorted({TORCH_NAMES.get(t.dtype, t.dtype) for t in tensors.values()}))
            told.append(f"{part}: {len(tensors)} tensors, {gigabytes(size_of(tensors))}, {dtypes}")
        told.append(
            f"tokens: {self.layout.num_image_tokens} image tokens from id {self.layout.image_start_token_id}, grid "
            f"{self.layout.grid} x {self.layout.grid}, vocabulary {self.policy.vocab_size} x {self.policy.hidden_size}"
        )
        told.append(f"lm_head.weight: {self.lm_head}")
        return told + [f"warning: {text}" for text in self.warnings]


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of some tensors."""
    return sum(tensor.size for tensor in tensors.values())


def read_config(path: str | Path) -> dict[str, Any]:
    """A JSON config from a file, or from the config.json of a folder; private keys (`_class_name`, ...) left out.

    Raises:
        UserError: missing, or no JSON object.
    """
    file = Path(path) / "config.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give a config.json")
    try:
        fields = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file}: not readable as a JSON object ({error}); give a config.json") from error
    return {name: value for name, value in fields.items() if not name.startswith("_")}


def make_plan(source: Source, configs: dict[str, dict[str, Any]], ta_tok: TaTokFile | None = None) -> Plan:
    """Checks an official checkpoint and plans its conversion; reads headers, configs and tokenizer, no weights.

    The one exception is `lm_head.weight`, which is compared with the embedding.

    Args:
        source: the checkpoint.
        configs: of `sana`, `vae` and `image_tokenizer`, as far as given.
        ta_tok: the content of ta_tok.pth.

    Raises:
        UserError: naming every key that is missing, unexpected or of the wrong shape.
    """
    if (source.folder / model_folder.INDEX).is_file() and (source.folder / "policy").is_dir():
        raise UserError(f"{source.folder}: is a model folder already; give an official checkpoint")
    fields = read_config(source.folder / "config.json")
    stored = tensor_files.open_folder(source.folder)
    official.require_blip3o(fields, stored)
    beside = {name: source.folder / file for name, file in CONFIG_FILES.items()}
    configs = {name: read_config(file) for name, file in beside.items() if file.is_file()} | configs
    has_tower = any(key.startswith(TOWER) for key in stored)
    image_tokenizer = _image_tokenizer_config(configs, ta_tok) if has_tower or ta_tok else None
    tokenizer = _load_tokenizer(source.folder)
    layout = official.token_layout(fields, tokenizer, _grid(image_tokenizer))
    lm_head, differing = official.lm_head_kind(stored) if official.EMBEDDING in stored else ("absent", 0)
    architecture = Architecture(
        policy=official.policy_config(
            fields,
            layout,
            tied=lm_head != "separate",
            dtype=TORCH_NAMES.get(stored[official.EMBEDDING].dtype) if official.EMBEDDING in stored else None,
            eos_token_id=fields.get("eos_token_id", tokenizer.eos_token_id),
            pad_token_id=tokenizer.pad_token_id,
        ),
        sana=configs.get("sana", released.SANA),
        vae=configs.get("vae", released.DC_AE),
        image_tokenizer=image_tokenizer,
        reference=official.reference_flags(fields, stored),
    )
    modules = architecture.modules()
    manifest = official.manifest(modules)
    own = {key: shape for key, shape in manifest.items() if has_tower or not key.startswith(TOWER)}
    differences = official.compare(own, stored)
    if differences:
        raise UserError(
            f"{source.folder}: its weights are not those of its configs: {differences}; "
            "give a whole checkpoint, and the configs of its SANA and autoencoder if they are not the released ones"
        )
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in stored.items():
        part, name = official.place(key, own) or (UNUSED, key)
        if key != LM_HEAD or lm_head == "separate":
            tensors.setdefault(part, {})[name] = tensor
    if ta_tok and not has_tower:
        tensors["image_tokenizer"] = _ta_tok_weights(ta_tok, manifest)
    plan = Plan(
        source, layout, architecture.policy, modules, tensors, tokenizer, stored, lm_head,
        ta_tok.flags if ta_tok else None,
    )  # fmt: skip
    plan.warnings = _warnings(plan, fields, differing, has_tower, set(configs))
    if image_tokenizer is not None and modules["image_tokenizer"].config.num_image_tokens != layout.num_image_tokens:
        raise UserError(
            f"TA-Tok has {modules['image_tokenizer'].config.num_image_tokens} codes, the policy "
            f"{layout.num_image_tokens} image tokens; the two are not from the same model"
        )
    return plan


def _image_tokenizer_config(configs: Mapping[str, dict[str, Any]], ta_tok: TaTokFile | None) -> dict[str, Any]:
    config = dict(configs.get("image_tokenizer", released.TA_TOK))
    if ta_tok is not None:
        config["l2_normalized"] = bool(ta_tok.flags["l2_normalized"])
        config["image_size"] = int(ta_tok.flags.get("input_size", config.get("image_size", 384)))
    return config


def _grid(image_tokenizer: Mapping[str, Any] | None) -> int:
    """Side of the token grid: 27 in every released model."""
    config = image_tokenizer or {}
    return int(config.get("image_size", 384)) // int(config.get("patch_size", 14))


def _ta_tok_weights(ta_tok: TaTokFile, manifest: Mapping[str, official.Shape]) -> dict[str, Tensor]:
    expected = {key.removeprefix(TOWER): shape for key, shape in manifest.items() if key.startswith(TOWER)}
    found = {name: tensor.shape for name, tensor in ta_tok.weights.items()}
    wrong = [name for name, shape in expected.items() if found.get(name) != shape]
    if wrong:
        raise UserError(
            f"ta_tok.pth: missing or of the wrong shape: {tensor_files.compact(wrong)}; give its config too"
        )
    return {name: ta_tok.weights[name] for name in expected}


def _load_tokenizer(folder: Path) -> Any:
    """The tokenizer of an official checkpoint; a config is passed so that its `model_type` is never looked at."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, config=Blip3oNextConfig(), padding_side="left")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({error}); give its tokenizer files too") from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = CHATML
    return tokenizer


def _warnings(plan: Plan, fields: Mapping[str, Any], differing: int, has_tower: bool, given: set[str]) -> list[str]:
    told = []
    if plan.lm_head == "separate":
        told.append(
            f"lm_head.weight differs from the embedding in {differing} of {plan.policy.vocab_size} rows; it is kept as "
            f"the output matrix (config.json: tie_word_embeddings {fields.get('tie_word_embeddings')})"
        )
    if plan.lm_head == "absent" and fields.get("tie_word_embeddings") is False:
        told.append("lm_head.weight is absent although tie_word_embeddings is false; the embedding is used")
    if "image_tokenizer" not in plan.tensors:
        told.append(
            "no vision tower: the folder cannot tokenise pictures (editing, fine-tuning); give ta_tok.pth to add it"
        )
    elif plan.ta_tok is None and "image_tokenizer" not in given:
        told.append("TA-Tok: l2_normalized is not in the checkpoint and taken to be false; give ta_tok.pth to be sure")
    elif plan.ta_tok is not None and has_tower:
        told.append("TA-Tok: flags from ta_tok.pth, weights from the checkpoint")
    beyond = [token for token, number in plan.tokenizer.get_vocab().items() if number >= plan.policy.vocab_size]
    if beyond:
        told.append(f"tokenizer: {', '.join(beyond)} behind the end of the embedding, left out")
    return told
