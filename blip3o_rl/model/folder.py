"""The model folder: one directory that holds everything needed to generate images.

    policy/            config.json (model_type blip3o_next), tokenizer, safetensors; a plain Qwen3 layout
    renderer/          connector/ transformer/ vae/, each with its config; in editing models reference_connector/ too
    image_tokenizer/   TA-Tok encoder and codebook (editing, SFT, reconstruction)
    model_index.json   format version, what is inside, where it came from

`model_index.json` is written last, so that a folder whose writing was interrupted has none and is refused. Loading
never guesses: a missing part is one error that names it. `mini` is the small model that ships with the package.
"""

from __future__ import annotations

import json
import shutil
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from blip3o_rl import __version__
from blip3o_rl.errors import UserError
from blip3o_rl.io import read_json, write_json
from blip3o_rl.machine import float32_gib
from blip3o_rl.model.token_layout import MAX_REFERENCES, TokenLayout, check_tokenizer
from blip3o_rl.stores import local

if TYPE_CHECKING:  # torch, transformers and diffusers are imported when a part is loaded
    import torch

    from blip3o_rl.model.image_tokenizer import TATok
    from blip3o_rl.model.policy import Blip3oNextConfig, Blip3oNextForCausalLM
    from blip3o_rl.model.renderer import Renderer

FORMAT = 1
INDEX = "model_index.json"
MINI = "mini"
PACKAGED = {MINI: "weights", "mini-edits": "edit_weights"}
"""Name of a model that ships with the package -> its folder in blip3o_rl/mini."""
PARTS = ("policy", "renderer", "image_tokenizer")
GENERATING = ("policy", "renderer")
"""The parts that text-to-image needs."""
RENDERER_PARTS = ("connector", "transformer", "vae")
REFERENCE_CONNECTOR = "reference_connector"
_EDITING = f"renderer/{REFERENCE_CONNECTOR}"
"""The part that only editing models have. The index lists it, so that a copy without it is incomplete."""


def resolve(name_or_path: str | Path) -> Path:
    """The existing folder for a path, an address in a store, or the name of a packaged model (`PACKAGED`)."""
    if (name := str(name_or_path)) in PACKAGED:
        return Path(__file__).parents[1] / "mini" / PACKAGED[name]
    path = local(name_or_path)
    if not path.is_dir():
        named = " or ".join(f"'{name}'" for name in PACKAGED) + " for a packaged one"
        raise UserError(f"model folder {path}: no such folder; give a model folder, or {named}")
    return path.resolve()


class ModelFolder:
    """A model folder that loads its parts. A `UserError` names the first missing or unreadable file.

    Args:
        folder: path, or name of a packaged model.
        parts: of `PARTS`, those to check at once, without loading a weight; a part is checked when it is loaded, too.
    """

    def __init__(self, folder: str | Path, *parts: str):
        self.path = resolve(folder)
        file = self.path / INDEX
        if not file.is_file():
            raise UserError(f"{file}: missing, so {self.path} is not a complete model folder; write it again")
        index = read_json(file)
        self.index: dict[str, Any] = index if isinstance(index, dict) else {}
        if (written := self.index.get("format")) != FORMAT:
            raise UserError(f"{file}: format {written}, this version reads {FORMAT}; write the model folder again")
        for part in parts:
            self._checked(part)

    @property
    def name(self) -> str:
        """The name of a packaged model, else that of the folder."""
        return next((name for name in PACKAGED if resolve(name) == self.path), self.path.name)

    @property
    def can_edit(self) -> bool:
        return (self.path / _EDITING).exists()

    @cached_property
    def layout(self) -> TokenLayout:
        """The token layout, from the policy's config alone."""
        return TokenLayout.from_config(self.policy_config)

    @cached_property
    def policy_config(self) -> Blip3oNextConfig:
        from blip3o_rl.model.policy import Blip3oNextConfig

        return Blip3oNextConfig.from_pretrained(self._checked("policy"))

    def check_editing(self, references: int = 1) -> None:
        """Raises `UserError` unless the model can edit images, so many at a time, and has all parts for it."""
        if not self.can_edit:
            what = f"has no {_EDITING}, so it generates from text only and takes no reference image"
            raise UserError(f"model folder {self.path}: {what}; use the folder of an editing model")
        for part in PARTS:
            self._checked(part)
        uses = read_json(self.path / _EDITING / "config.json")
        most = 1 if uses.get("noise_injection", True) else MAX_REFERENCES
        if references > most:
            what = f"{references} reference images for one prompt, this model takes {most}"
            raise UserError(f"model folder {self.path}: {what}; give fewer")

    def load_policy(
        self, dtype: torch.dtype | str = "float32", device: str | torch.device = "cpu"
    ) -> Blip3oNextForCausalLM:
        """The policy in evaluation mode."""
        from blip3o_rl.model.policy import Blip3oNextForCausalLM

        return Blip3oNextForCausalLM.from_pretrained(self._checked("policy"), dtype=dtype).to(device).eval()

    def load_tokenizer(self) -> Any:
        """The text tokenizer, left-padding, checked against the policy's layout."""
        from transformers import AutoTokenizer

        layout = self.layout  # its module makes the policy's model type known to transformers
        tokenizer = AutoTokenizer.from_pretrained(self._checked("policy"), padding_side="left")
        check_tokenizer(tokenizer, layout)
        return tokenizer

    def load_renderer(self, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> Renderer:
        """The frozen renderer in evaluation mode; float32 by default."""
        import torch

        from blip3o_rl.model.renderer import Renderer

        renderer = Renderer.from_pretrained(self._checked("renderer"), dtype=dtype or torch.float32)
        return renderer.to(device).requires_grad_(False)

    def load_image_tokenizer(self, device: str | torch.device = "cpu") -> TATok:
        """The frozen image tokenizer in evaluation mode, always float32."""
        import torch

        from blip3o_rl.model.image_tokenizer import TATok

        tokenizer = TATok.from_pretrained(self._checked("image_tokenizer"), torch_dtype=torch.float32)
        return tokenizer.to(device).eval().requires_grad_(False)

    def _checked(self, part: str) -> Path:
        """The folder of a part, with all its files."""
        path = self.path / part
        folders = [path / name for name in RENDERER_PARTS] if part == "renderer" else [path]
        if part == "renderer" and (self.can_edit or _EDITING in self.index.get("parts", ())):
            folders.append(path / REFERENCE_CONNECTOR)
        files = [folder / "config.json" for folder in folders]
        for file in [*files, path / "tokenizer.json"] if part == "policy" else files:
            if not file.is_file():
                raise UserError(f"{file}: missing from the model folder; write or copy it again")
        for folder in folders:
            if not float32_gib(folder):  # refuses truncated files
                raise UserError(f"{folder}: no .safetensors file; write or copy the folder again")
        if part == "policy":
            TokenLayout.from_config(SimpleNamespace(**read_json(files[0])))
        if part == "image_tokenizer":
            from blip3o_rl.model.image_tokenizer import require_config

            require_config(files[0])
        return path


def save(
    folder: str | Path,
    *,
    policy: Any,
    tokenizer: Any,
    renderer: Renderer | Path | None = None,
    image_tokenizer: TATok | Path | None = None,
    source: str,
) -> Path:
    """Writes a model folder; the parts given replace those there.

    Args:
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
    for file in path.rglob("config.json"):
        fields = json.loads(file.read_text())
        if fields.pop("_name_or_path", None) is not None:  # the path it was loaded from, which diffusers writes there
            write_json(file, fields)
    write_index(path, source)
    return path


def write_index(path: Path, source: str, **records: Any) -> None:
    """Writes the index, after everything else in the folder."""
    import torch

    parts = [part for part in (*PARTS, _EDITING) if (path / part).is_dir()]
    index = {"format": FORMAT, "parts": parts, "source": source, "blip3o_rl": __version__, "torch": torch.__version__}
    write_json(path / INDEX, index | records)
