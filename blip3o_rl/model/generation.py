"""How an image is generated: the settings of one call, and who is informed of its progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from blip3o_rl.errors import UserError

ROUNDING = 1e-6
"""Of noise levels in float32."""


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of text-to-image generation, editing and reconstruction; the defaults are the upstream renderer's.

    Numbers out of range are a `UserError`. What depends on the model (scale, size) is checked against the model.
    """

    scale: int = 0
    """0, 1, 2 for 729, 169, 81 tokens on the 27 x 27 grid; upstream models were trained at scale 0."""
    steps: int = 30
    """Euler steps of the renderer."""
    guidance: float = 2.0
    """Classifier-free guidance of the renderer; 1 is none, 0 is the null condition alone."""
    size: int | None = None
    """Side of the image in pixels, see `rendering.latent_side`; None is the model's own."""
    batch_size: int = 32
    """Images at a time; bounds the memory."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0 is all of them, which is what training samples from and optimizes."""
    top_p: float = 1.0
    """Then among the fewest tokens with this probability together; 1 is all. Upstream's images have 1200 and 0.95."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Lowest and highest noise level sigma at which an Euler step is guided (Kynkäänniemi et al., arXiv 2404.07724);
    a step without guidance costs about half."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError(f"top_k={self.top_k}, top_p={self.top_p}: must be at least 0, and above 0 up to 1")
        if not self.guidance >= 0:
            raise UserError(f"guidance={self.guidance}: must be at least 0")
        low, high = self.guidance_interval
        if not 0 <= low < high <= 1:
            raise UserError(f"guidance_interval={[low, high]}: must be two noise levels, low < high, from 0 to 1")
        if (low, high) != (0, 1) and self.guidance == 1:
            raise UserError(f"guidance_interval={[low, high]}: guidance=1 is none, which has no interval; leave it out")
        if self.guidance != 1 and not self.guided_steps:
            what = f"none of the {self.steps} steps begins at such a noise level"
            raise UserError(f"guidance_interval={[low, high]}: {what}; set guidance=1, or a wider interval")

    def guidance_at(self, sigma: float) -> float:
        """The guidance of an Euler step that begins at noise level `sigma`."""
        low, high = self.guidance_interval
        return self.guidance if low - ROUNDING <= sigma <= high + ROUNDING else 1.0

    @property
    def guided_steps(self) -> int:
        """How many of the Euler steps have two branches; they begin at 1, 1 - 1 / steps, ..., 1 / steps."""
        return sum(self.guidance_at(1 - step / self.steps) != 1 for step in range(self.steps))

    @property
    def filters_tokens(self) -> bool:
        return self.top_k > 0 or self.top_p < 1


DEFAULTS = GenerationConfig()


class Progress(Protocol):
    """Receives how far a batch is."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """`stage` is "tokens" or "steps"; `done` of `total` are complete."""


def silent(stage: str, done: int, total: int) -> None:
    """The `Progress` that reports nothing."""
