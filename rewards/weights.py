"""Where a learned reward's weights come from, and that they are all there.

A source is a local folder, a local file, or a hub id (`owner/name`, or `owner/name@revision` to pin it). Two decisions:
nothing in a downloaded file is ever executed (safetensors first, other files only through `weights_only=True`), and a
checkpoint that lacks a tensor is refused, because transformers would fill the gap with random numbers and a warning.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file

from blip3o_rl.errors import UserError, choice
from blip3o_rl.io import user_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOADING = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
"""transformers collects gaps and wrong shapes; they are refused here, by name."""

Rules = Sequence[tuple[str, str]]
"""Pattern of a whole tensor name -> its new name; `{}` there stands for q, k and v of a matrix that is split."""


def dtype_of(name: str) -> torch.dtype:
    """The number type of a config entry."""
    return DTYPES[choice(name, DTYPES, "dtype")]


def located(source: str, key: str) -> tuple[str, str | None]:
    """What transformers takes: (local path or hub id, revision or None). A path where nothing is, is refused."""
    path = user_path(source)
    if path.exists():
        return str(path), None
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or path.suffix in (".pt", ".pth", ".safetensors"):
        raise UserError(f"{key}: there is no {source}; set {key} to a folder, a file or a hub id (owner/name)")
    name, _, revision = source.partition("@")
    return name, revision or None


def find_file(source: str, published: str, key: str) -> Path:
    """The file of a source, downloaded if the source is a hub id.

    Args:
        published: the file's published name. In a local folder the same name with `.safetensors` comes first.
        key: config key for messages.
    """
    name, revision = located(source, key)
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        for candidate in (path / published).with_suffix(".safetensors"), path / published:
            if candidate.is_file():
                return candidate
        raise UserError(f"{key}: {path} has no {published}; put the published file there or name the file itself")
    try:
        return Path(hf_hub_download(name, published, revision=revision))
    except Exception as error:
        raise _unreachable(source, key, error) from error


def read_state(path: Path, key: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or torch file, on the CPU; a mapping under "state_dict" is unpacked."""
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file leads torch's reader to errors of any type
        raise UserError(
            f"{key}: {path} cannot be read as plain tensors ({_first_line(error)}); "
            f"get it again, or save its state dict as {path.with_suffix('.safetensors').name}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise UserError(f"{key}: {path} holds {type(content).__name__}, not a state dict; use the published file")
    state = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise UserError(f"{key}: {path} holds no tensors; use the published file")
    return state


def module_rules(source: str, target: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    """Rules for the weights and biases of modules: old name (a pattern) -> new name, below two prefixes."""
    return [(rf"{source}{old}[._](?P<kind>weight|bias)", rf"{target}{new}.\g<kind>") for old, new in names.items()]


def renamed(state: Mapping[str, torch.Tensor], rules: Rules, unknown: str = "") -> dict[str, torch.Tensor]:
    """A state dict under other names.

    Args:
        unknown: of the `UserError` for a name that no rule matches, with `{name}` in it; empty leaves such tensors out.
    """
    result: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        found = next((m.expand(new) for old, new in rules if (m := re.fullmatch(old, name))), None)
        if found is None:
            if unknown:
                raise UserError(unknown.format(name=name))
        elif "{}" in found:
            result |= {found.format(part): rows.clone() for part, rows in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            result[found] = tensor
    return result


def pretrained(cls: Any, source: str, key: str, **options: Any) -> Any:
    """`cls.from_pretrained` for tokenizers, processors and configs."""
    name, revision = located(source, key)
    try:
        return cls.from_pretrained(name, revision=revision, **options)
    except Exception as error:
        raise _unreachable(source, key, error) from error


def pretrained_model(cls: Any, source: str, key: str) -> Any:
    """`cls.from_pretrained` in float32, for inference; every tensor of the model must be in the checkpoint."""
    model, info = pretrained(cls, source, key, **LOADING)
    return _complete(model, info, source, key)


def model_from_state(
    cls: Any, config: Any, state: dict[str, torch.Tensor], source: str, key: str, **options: Any
) -> Any:
    """A transformers model in float32 from a config and a converted state dict; both must have the same tensors."""
    model, info = cls.from_pretrained(None, config=config, state_dict=state, **LOADING, **options)
    if info["unexpected_keys"]:
        surplus = min(map(str, info["unexpected_keys"]))
        raise UserError(f"{key}: {source} has {surplus}, for which {cls.__name__} has no place; get the published one")
    return _complete(model, info, source, key)


def _complete(model: Any, info: Mapping[str, Any], source: str, key: str) -> Any:
    wrong = sorted({str(name) for name in info["missing_keys"]} | {str(found[0]) for found in info["mismatched_keys"]})
    if wrong:
        raise UserError(
            f"{key}: {source} lacks {len(wrong)} of the tensors of {type(model).__name__}, or has them in another "
            f"shape (first: {wrong[0]}); it is another model or cut short, get the published one"
        )
    return model.eval().requires_grad_(False)


def _unreachable(source: str, key: str, error: Exception) -> UserError:
    reason = f"{type(error).__name__}: {_first_line(error)}"
    return UserError(f"{key}: {source} cannot be loaded, {reason}; without a network set {key} to a local copy")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
