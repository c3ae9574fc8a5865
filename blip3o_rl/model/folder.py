"""The model folder: one directory that holds everything needed to draw.

    policy/            config.json (model_type blip3o_next), tokenizer, safetensors; a plain Qwen3 layout
    renderer/          connector/ transformer/ vae/, each with its config; in editing models reference_connector/ too
    image_tokenizer/   TA-Tok encoder and codebook (editing, SFT, reconstruction)
    model_index.json   format version, what is inside, where it came from

`model_index.json` is written last, so that a folder whose writing was interrupted has none and is refused. Loading
never guesses: a missing part is one error that names it. `mini` is the name of the small model that ships with the
package.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from blip3o_rl import __version__
from blip3o_rl.errors import UserError
from blip3o_rl.model.image_tokenizer import TATok
from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
from blip3o_rl.model.renderer import REFERENCE_CONNECTOR, Renderer
from blip3o_rl.model.token_layout import TokenLayout, check_tokenizer

FORMAT = 1
INDEX = "model_index.json"
MINI = "mini"
PARTS = ("policy", "renderer", "image_tokenizer")
_FILES = {
    "policy": ("config.json", "tokenizer.json"),
    "renderer": ("connector/config.json", "transformer/config.json", "vae/config.json"),
    "image_tokenizer": ("config.json",),
}
_WEIGHTS = {
    "policy": ("",),
    "renderer": ("connector", "transformer", "vae"),
    "image_tokenizer": ("",),
}
_EDITING = f"renderer/{REFERENCE_CONNECTOR}"
"""The part that only editing models have. The index lists it, so that a copy without it is incomplete."""


def resolve(name_or_path: str | Path) -> Path:
    """The folder for a path, or for the name of the packaged model (`mini`).

    Raises:
        UserError: there is no such folder.
    """
    if str(name_or_path) == MINI:
        return Path(__file__).parents[1] / "mini" / "weights"
    path = Path(name_or_path).expanduser()
    if not path.is_dir():
        raise UserError(f"model folder {path}: no such folder; give a model folder, or '{MINI}' for the packaged one")
    return path.resolve()


def check(folder: str | Path, parts: tuple[str, ...] = ("policy", "renderer")) -> Path:
    """Checks that `folder` is a complete model folder, without loading a weight.

    Args:
        folder: path or packaged name.
        parts: the parts that the caller is going to load.

    Returns:
        The resolved path.

    Raises:
        UserError: naming the first missing or unreadable file.
    """
    path = resolve(folder)
    index = path / INDEX
    if not index.is_file():
        raise UserError(f"{index}: missing, so {path} is no complete model folder; write it again")
    try:
        fields = json.loads(index.read_text())
        written, listed = fields["format"], fields.get("parts", ())
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{index}: not readable as a model index ({error}); write the model folder again") from error
    if written != FORMAT:
        raise UserError(f"{index}: format {written}, this version reads {FORMAT}; write the model folder again")
    for part in parts:
        editing = part == "renderer" and (_EDITING in listed or (path / _EDITING).exists())
        _check_part(path / part, part, (REFERENCE_CONNECTOR,) if editing else ())
    return path


def check_editing(folder: str | Path) -> Path:
    """Checks, without loading a weight, that `folder` is a complete model folder that can edit pictures.

    Raises:
        UserError: the model draws from text only, or a file is missing.
    """
    path = check(folder, ("policy", "renderer"))
    if not (path / _EDITING).exists():
        raise UserError(
            f"model folder {path}: has no {_EDITING}, so it draws from text only and takes no reference picture; "
            "use the folder of an editing model"
        )
    return check(path, ("image_tokenizer",))


def _check_part(path: Path, part: str, optional: tuple[str, ...] = ()) -> None:
    for name in (*_FILES[part], *(f"{sub}/config.json" for sub in optional)):
        if not (path / name).is_file():
            raise UserError(f"{path / name}: missing from the model folder; write or copy it again")
    for sub in (*_WEIGHTS[part], *optional):
        weights = sorted((path / sub).glob("*.safetensors"))
        if not weights:
            raise UserError(f"{path / sub}: no .safetensors file; write or copy the model folder again")
        for file in weights:
            if file.stat().st_size < 8:
                raise UserError(f"{file}: truncated ({file.stat().st_size} bytes); copy the model folder again")
    if part == "policy":
        config = json.loads((path / "config.json").read_text())
        TokenLayout.from_config(_Fields(config))


class _Fields:
    """Attribute access to a parsed config.json; absent fields are None."""

    def __init__(self, fields: dict[str, Any]):
        self._fields = fields

    def __getattr__(self, name: str) -> Any:
        return self._fields.get(name)


def load_policy(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Blip3oNextForCausalLM:
    """The policy in evaluation mode."""
    path = check(folder, ("policy",))
    return Blip3oNextForCausalLM.from_pretrained(path / "policy", dtype=dtype).to(device).eval()


def load_tokenizer(folder: str | Path) -> Any:
    """The text tokenizer, left-padding, checked against the policy's layout."""
    path = check(folder, ("policy",))
    tokenizer = AutoTokenizer.from_pretrained(path / "policy", padding_side="left")
    check_tokenizer(tokenizer, load_layout(path))
    return tokenizer


def load_layout(folder: str | Path) -> TokenLayout:
    """The token layout, from the policy's config alone."""
    path = check(folder, ("policy",))
    return TokenLayout.from_config(Blip3oNextConfig.from_pretrained(path / "policy"))


def load_renderer(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Renderer:
    """The frozen renderer in evaluation mode."""
    path = check(folder, ("renderer",))
    return Renderer.from_pretrained(path / "renderer", dtype=dtype).to(device).eval().requires_grad_(False)


def load_image_tokenizer(
    folder: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> TATok:
    """The frozen image tokenizer in evaluation mode."""
    path = check(folder, ("image_tokenizer",))
    tokenizer = TATok.from_pretrained(path / "image_tokenizer", torch_dtype=dtype)
    return tokenizer.to(device).eval().requires_grad_(False)


def save(
    folder: str | Path,
    *,
    policy: Any,
    tokenizer: Any,
    renderer: Renderer | Path | None = None,
    image_tokenizer: TATok | Path | None = None,
    source: str,
) -> Path:
    """Writes a model folder.

    Args:
        folder: created if needed; the parts given replace those there.
        policy, tokenizer: transformers objects.
        renderer, image_tokenizer: modules, or the folder of an existing part, which is copied unchanged.
        source: where the weights came from; recorded in the index.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / INDEX).unlink(missing_ok=True)
    policy.save_pretrained(path / "policy")
    tokenizer.save_pretrained(path / "policy")
    for part, value in (("renderer", renderer), ("image_tokenizer", image_tokenizer)):
        if isinstance(value, Path):
            shutil.copytree(value, path / part, dirs_exist_ok=True)
        elif value is not None:
            value.save_pretrained(path / part)
    _forget_origins(path)
    parts = [part for part in (*PARTS, _EDITING) if (path / part).is_dir()]
    index = {"format": FORMAT, "parts": parts, "source": source, "blip3o_rl": __version__, "torch": torch.__version__}
    temporary = path / (INDEX + ".part")
    temporary.write_text(json.dumps(index, indent=2) + "\n")
    temporary.replace(path / INDEX)
    return path


def _forget_origins(path: Path) -> None:
    """Takes out of every config where on this machine its weights were loaded from, which diffusers writes there."""
    for file in path.rglob("config.json"):
        fields = json.loads(file.read_text())
        if fields.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(fields, indent=2) + "\n")
