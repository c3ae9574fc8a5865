"""Where the image tokens live in the vocabulary, and how a prompt becomes token ids.

BLIP3o-NEXT adds three groups of tokens behind the text vocabulary, in this order: `<im_start>` `<im_end>`, the
scale tokens `<S0>` `<S1>` `<S2>`, and the image tokens `<I0>` ... `<I65535>`. All ids follow from six numbers in the
policy's config; nothing else in the package does arithmetic on token ids.

An image is a square grid of image tokens: 27 x 27 = 729 of them at scale 0; scales 1 and 2 pool the grid by 2 and
3, which gives 13 x 13 = 169 and 9 x 9 = 81 tokens. The published models were trained at scale 0 only.

The system turn may differ by task, which the policy's config says as well (`system_prompts`): whoever encodes a prompt
with a model's layout, in training or inference, uses the words that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from blip3o_rl.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

IMAGE_TAGS = ("<im_start>", "<im_end>")
NUM_SCALES = 3
SYSTEM_PROMPT = "You are a helpful assistant."
USER_PROMPT = "Please generate image based on the following caption: {prompt}"
EDIT_PROMPT = "Please edit {which} according to the following instruction: {instruction}.\n"
VISION_TAGS = ("<|vision_start|>", "<|vision_end|>")
"""Qwen's own tokens around the tokens of reference images."""
MAX_REFERENCES = 4
"""Reference images of one prompt; upstream drops what is beyond them."""
KEEP_INSTRUCTION = "Keep the image unchanged."
"""Upstream's instruction for reconstruction."""
Task = Literal["text_to_image", "edit", "keep", "subject"]
"""Text to image; and with references: edit, reproduce (`keep`), or show their subject in a new image."""
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class SystemPrompts:
    """The system turn of each task; by default upstream's line for all."""

    text_to_image: str = SYSTEM_PROMPT
    edit: str = SYSTEM_PROMPT
    keep: str = SYSTEM_PROMPT
    subject: str = SYSTEM_PROMPT

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> SystemPrompts:
        """From the tasks that differ; a `UserError` for an unknown task or one whose prompt is no text."""
        for task, text in given.items():
            if task not in TASKS:
                known = f"known: {', '.join(TASKS)}{did_you_mean(task, TASKS)}"
                raise UserError(f"policy config.json: system_prompts.{task}: there is no such task; {known}")
            if not isinstance(text, str):
                raise UserError(f"policy config.json: system_prompts.{task}={text!r}: must be text")
        return cls(**given)

    def different(self) -> dict[str, str]:
        """Those that are not upstream's line; inverse of `from_mapping`."""
        return {task: text for task, text in asdict(self).items() if text != SYSTEM_PROMPT}


def task_of(instruction: str) -> Task:
    """The task of an instruction that does not name it: `keep` for upstream's sentence, otherwise `edit`."""
    keep = KEEP_INSTRUCTION.rstrip(".").lower()
    return "keep" if instruction.strip().rstrip(".").lower() == keep else "edit"


@dataclass(frozen=True)
class TokenLayout:
    """Ids of the added tokens; side of the token grid at scale 0 (27 in every published model); system prompts."""

    image_start_tag_id: int
    image_end_tag_id: int
    scale_start_token_id: int
    num_scale_tokens: int
    image_start_token_id: int
    num_image_tokens: int
    grid: int = 27
    system_prompts: SystemPrompts = SystemPrompts()

    @classmethod
    def from_config(cls, config: Any) -> TokenLayout:
        """Reads the layout from a policy config; a field is absent where a text-only Qwen3 is given by mistake."""
        names = [field.name for field in fields(cls) if field.name not in ("grid", "system_prompts")]
        if missing := [name for name in names if getattr(config, name, None) is None]:
            what = f"{', '.join(missing)} missing, so this is no BLIP3o-NEXT policy (a text-only language model?)"
            raise UserError(f"policy config.json: {what}; give a model folder written by this package")
        ids = {name: int(getattr(config, name)) for name in names}
        prompts = SystemPrompts.from_mapping(getattr(config, "system_prompts", None) or {})
        return cls(**ids, grid=int(getattr(config, "image_grid", 27)), system_prompts=prompts)

    def config_fields(self) -> dict[str, Any]:
        """The layout as fields of the policy's config.json; inverse of `from_config`."""
        values = asdict(self)
        values["image_grid"] = values.pop("grid")
        values["system_prompts"] = self.system_prompts.different() or None
        return {name: value for name, value in values.items() if value is not None}

    @property
    def image_ids(self) -> range:
        """The token ids of all image tokens: the policy's action space."""
        return range(self.image_start_token_id, self.image_start_token_id + self.num_image_tokens)

    def tokens_per_image(self, scale: int) -> int:
        """Image tokens of one image: 729, 169 or 81 for scale 0, 1, 2 on the 27 x 27 grid."""
        self._check_scale(scale)
        return (self.grid // (scale + 1)) ** 2

    def scale_token_id(self, scale: int) -> int:
        """Id of `<S0>`, `<S1>` or `<S2>`."""
        self._check_scale(scale)
        return self.scale_start_token_id + scale

    def to_ids(self, indices: torch.Tensor) -> torch.Tensor:
        """Codebook indices 0..num_image_tokens-1 to token ids, any shape."""
        return indices + self.image_start_token_id

    def to_indices(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids to codebook indices, any shape; a `ValueError` if an id is not an image token."""
        indices = ids - self.image_start_token_id
        if indices.numel() and not bool(((indices >= 0) & (indices < self.num_image_tokens)).all()):
            raise ValueError(f"token ids outside the image vocabulary {self.image_ids}")
        return indices

    def _check_scale(self, scale: int) -> None:
        if scale not in range(self.num_scale_tokens):
            raise UserError(f"scale={scale}: must be one of {', '.join(map(str, range(self.num_scale_tokens)))}")


def add_image_tokens(tokenizer: Any, num_image_tokens: int, grid: int = 27) -> TokenLayout:
    """Adds the tags (alone *special* tokens, as upstream), scale tokens and image tokens; returns their layout."""
    start = len(tokenizer)
    tokenizer.add_tokens(list(IMAGE_TAGS), special_tokens=True)
    tokenizer.add_tokens([f"<S{i}>" for i in range(NUM_SCALES)])
    tokenizer.add_tokens([f"<I{i}>" for i in range(num_image_tokens)])
    layout = TokenLayout(start, start + 1, start + 2, NUM_SCALES, start + 2 + NUM_SCALES, num_image_tokens, grid)
    check_tokenizer(tokenizer, layout)
    return layout


def check_tokenizer(tokenizer: Any, layout: TokenLayout) -> None:
    """Raises `UserError` unless the tokenizer gives the added tokens the ids that the layout says."""
    expected = {
        IMAGE_TAGS[0]: layout.image_start_tag_id,
        IMAGE_TAGS[1]: layout.image_end_tag_id,
        "<S0>": layout.scale_start_token_id,
        "<I0>": layout.image_ids[0],
        f"<I{layout.num_image_tokens - 1}>": layout.image_ids[-1],
    }
    for token, token_id in expected.items():
        found = tokenizer.convert_tokens_to_ids(token)
        if found != token_id:
            what = f"{token} has id {found}, the policy's config says {token_id}"
            raise UserError(f"tokenizer: {what}; use the tokenizer that was saved with this policy")


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The template that the model was trained with; for a system and a user message the same string as Qwen3's own."""


def chat_messages(prompt: str, system: str = SYSTEM_PROMPT) -> list[dict[str, str]]:
    """The conversation the model was trained on, with the caption in the user's turn."""
    return _conversation(USER_PROMPT.format(prompt=prompt), system)


def edit_messages(instruction: str, references: int, system: str = SYSTEM_PROMPT) -> list[dict[str, str]]:
    """The conversation of an editing sample; between the two vision tags the tokens of the references are missing.

    Spelled as in upstream's inference_editing.py (one reference) and dataset.py (several): a full stop is added to
    every instruction, and all references share one pair of tags.
    """
    which = "this image" if references == 1 else "these images"
    return _conversation(EDIT_PROMPT.format(which=which, instruction=instruction) + "".join(VISION_TAGS), system)


def _conversation(content: str, system: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": content}]


def encode_prompt(tokenizer: Any, prompt: str, scale: int, layout: TokenLayout) -> list[int]:
    """Token ids of a text-to-image prompt; as in upstream's inference code `<im_start>` and the scale token end it."""
    messages = chat_messages(prompt, layout.system_prompts.text_to_image)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return [*_ids(tokenizer, text), layout.image_start_tag_id, layout.scale_token_id(scale)]


def encode_edit_prompt(
    tokenizer: Any,
    instruction: str,
    references: torch.Tensor,
    scale: int,
    layout: TokenLayout,
    task: Task | None = None,
) -> list[int]:
    """Token ids of an editing prompt, which end like those of a text-to-image prompt.

    Upstream writes one `<|image_pad|>` for every token of the references and then replaces these ids in order. Here
    the references' ids go between the tags at once: the same ids, and an `<|image_pad|>` in the instruction is left
    alone. References are codebook indices [r, tokens_per_image(scale)], 1 <= r <= 4, without `<im_start>` of their own.
    The task chooses the system prompt; None is `task_of` the instruction.
    """
    count = layout.tokens_per_image(scale)
    if references.ndim != 2 or not 1 <= len(references) <= MAX_REFERENCES or references.shape[1] != count:
        wanted = f"1 to {MAX_REFERENCES} references of {count} tokens each (scale {scale})"
        raise UserError(f"reference tokens of shape {list(references.shape)}: give {wanted}")
    for tag in VISION_TAGS:
        if _ids(tokenizer, tag) != [tokenizer.convert_tokens_to_ids(tag)]:
            raise UserError(f"tokenizer: {tag} is none of its tokens; editing needs that of a BLIP3o-NEXT policy")
    system = getattr(layout.system_prompts, task or task_of(instruction))
    messages = edit_messages(instruction, len(references), system)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, after = text.rsplit(VISION_TAGS[1], 1)
    return [
        *_ids(tokenizer, before),
        *layout.to_ids(references).flatten().tolist(),
        *_ids(tokenizer, VISION_TAGS[1] + after),
        layout.image_start_tag_id,
        layout.scale_token_id(scale),
    ]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]
