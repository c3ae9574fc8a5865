"""The renderer: hidden states of the policy to images.

Connector (two linear layers and a norm), SANA (a diffusion transformer that meets the connector's output in
cross-attention) and DC-AE (a convolutional autoencoder). Flow matching: x(sigma) = (1 - sigma) x0 + sigma noise, and
the network predicts the velocity noise - x0. The way from noise to an image is `rendering`.

Facts kept from BLIP3o-NEXT, each of which is easy to get wrong:
- the condition is the *post-norm* hidden states of the scale token and all image tokens;
- the null condition of the guidance is the connector applied to zeros, not zeros;
- the network's timestep is sigma * 1000;
- latents are divided by the autoencoder's scaling factor before decoding; there is no shift.
The null condition's rows are all equal, and attention over n equal rows is attention over one of them.

An editing model has a second connector, for the autoencoder's latent of a reference image. It uses the latent in two
places, each of which its config can switch off:
- in cross-attention: one row per position, row-major, through that connector, *after* the rows of the tokens;
- in the network's input: the clean latent next to the noisy one, [noisy | reference], concatenated along the *width*
  (the upstream flag is called CONCAT_AS_HEIGHT). Both halves have the timestep of the noise, and only the noisy half
  of the prediction is used.
As in upstream's inference, not its training, the null condition has plain zeros for the reference's rows, not a
connector of zeros, and guidance keeps the reference in the input of both branches.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderDC, ConfigMixin, ModelMixin, SanaTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import RMSNorm
from torch import nn

from blip3o_rl.errors import UserError
from blip3o_rl.model import denoiser
from blip3o_rl.model.folder import REFERENCE_CONNECTOR
from blip3o_rl.model.folder import RENDERER_PARTS as PARTS

TIMESTEPS = 1000
NORM_START = 5.5**0.5
"""Initial weight of the connector's norm, as upstream."""
DECODE_PIXELS = 2 * 1024**2
"""Pixels decoded at a time: the autoencoder needs 1.8 GB per megapixel, so that larger batches run out of memory."""
Condition: TypeAlias = torch.Tensor | Sequence[denoiser.Attended]
"""Condition rows [B or 1, rows, C], or what `Renderer.attended` makes of them for many steps."""


class Connector(ModelMixin, ConfigMixin):
    """Hidden states [..., in_features] to condition rows [..., out_features]. The defaults are the upstream model's."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, in_features: int = 2048, out_features: int = 2304):
        super().__init__()
        norm = RMSNorm(out_features, eps=1e-5, elementwise_affine=True)
        nn.init.constant_(norm.weight, NORM_START)
        first, second = nn.Linear(in_features, out_features), nn.Linear(out_features, out_features)
        self.layers = nn.Sequential(first, nn.GELU(approximate="tanh"), second, norm)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.layers(states)


class ReferenceConnector(Connector):
    """Channels of a reference's latent to condition rows (upstream's `und_image_vae_connector`), and their uses.

    Args:
        cross_attention: the rows are appended to the condition (upstream: not `only_use_und_image_vae_as_noise`).
        noise_injection: the latent is next to the noise in the network's input (`use_und_image_vae_as_noise`).
    """

    @register_to_config
    def __init__(
        self,
        in_features: int = 32,
        out_features: int = 2304,
        cross_attention: bool = True,
        noise_injection: bool = True,
    ):
        super().__init__(in_features, out_features)

    @property
    def takes_latents(self) -> bool:
        """Whether the renderer sees the reference; if not, the policy alone edits."""
        return bool(self.config.cross_attention or self.config.noise_injection)


class Renderer(nn.Module):
    """Connector, diffusion transformer and autoencoder of one model; an editing model's second connector."""

    def __init__(
        self,
        connector: Connector,
        transformer: SanaTransformer2DModel,
        vae: AutoencoderDC,
        reference_connector: ReferenceConnector | None = None,
    ):
        super().__init__()
        self.connector = connector
        self.transformer = transformer
        self.vae = vae
        self.reference_connector = reference_connector
        self.layer = denoiser.layer
        taken = transformer.config.caption_channels
        joints = [("connector gives", connector.config.out_features, "transformer takes", taken)]
        if reference_connector is not None:
            sizes, latent = reference_connector.config, vae.config.latent_channels
            joints.append((f"{REFERENCE_CONNECTOR} gives", sizes.out_features, "transformer takes", taken))
            joints.append((f"{REFERENCE_CONNECTOR} takes", sizes.in_features, "autoencoder's latents have", latent))
        for what, found, other, expected in joints:
            if found != expected:
                text = f"the {what} {found} channels, the {other} {expected}"
                raise UserError(f"renderer: {text}; the two are not from the same model")

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Renderer:
        """Loads `connector/`, `transformer/`, `vae/` and, if there, `reference_connector/`, in evaluation mode."""
        kinds: dict[str, Any] = dict(zip(PARTS, (Connector, SanaTransformer2DModel, AutoencoderDC), strict=True))
        if (Path(folder) / REFERENCE_CONNECTOR).is_dir():
            kinds[REFERENCE_CONNECTOR] = ReferenceConnector
        parts = {name: kind.from_pretrained(Path(folder) / name, torch_dtype=dtype) for name, kind in kinds.items()}
        return cls(**parts).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the parts, each with its config and safetensors; a `reference_connector/` without one is removed."""
        parts: Any = self.named_children()
        for name, part in parts:
            part.save_pretrained(Path(folder) / name)
        if self.reference_connector is None:
            shutil.rmtree(Path(folder) / REFERENCE_CONNECTOR, ignore_errors=True)

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        config = self.transformer.config
        return config.out_channels or config.in_channels, config.sample_size, config.sample_size

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        return self.latent_shape[1] * self.vae.spatial_compression_ratio

    def editing_connector(self) -> ReferenceConnector:
        """The second connector, or a `UserError` if the model was not trained to edit."""
        if self.reference_connector is None:
            what = "this model folder has no renderer/reference_connector, it generates from text only"
            raise UserError(f"reference image: {what}; use the folder of an editing model, or leave the reference out")
        return self.reference_connector

    def condition(self, states: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        """Condition of images: [B, n + 1, C]; with references [B, n + 1 + h * w, C] if the model appends rows.

        Args:
            states: post-norm hidden states of scale token and image tokens, [B, n + 1, hidden], any dtype and device.
            latents: of the references, [B, c, h, w]; None for text-to-image.
        """
        rows = self.connector(states.to(self.device, self.dtype))
        if latents is None:
            return rows
        connector = self.editing_connector()
        self._check_latents(latents, len(states))
        if not connector.config.cross_attention:
            return rows
        return torch.cat([rows, connector(latents.to(rows).movedim(1, -1).flatten(1, 2))], dim=1)

    def null_condition(self, n: int = 1, editing: bool = False) -> torch.Tensor:
        """Condition without content: the connector applied to zeros, [1, n, C] with n equal rows.

        When editing, zeros for the reference's rows follow, if the model appends rows. The n rows weigh against them,
        so that one row does not stand for all.
        """
        zeros = torch.zeros(1, 1, self.connector.config.in_features, device=self.device, dtype=self.dtype)
        rows = self.connector(zeros).expand(1, n, -1)
        if not editing or not self.editing_connector().config.cross_attention:
            return rows
        _, height, width = self.latent_shape
        return torch.cat([rows, rows.new_zeros(1, height * width, rows.shape[-1])], dim=1)

    def compile_layers(self) -> None:
        """Renders with compiled layers from now on: fewer passes over memory, images equal up to rounding.

        A layer is compiled, and not the whole network, because all layers share the code: once for each kind of
        condition and range of batch sizes, while the first images of it are rendered.
        """
        self.layer = torch.compile(denoiser.layer, dynamic=True)

    def attended(self, condition: torch.Tensor) -> Sequence[denoiser.Attended]:
        """What every step takes from a condition [B or 1, rows, C], computed once; see `denoiser`."""
        return denoiser.attended(self.transformer, condition)

    def predict(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition) -> torch.Tensor:
        """The network's velocity for one condition, without guidance: float32 [B, c, h, w], as x.

        `sigma` is the noise level in (0, 1], one number or [B].
        """
        timestep = torch.as_tensor(sigma, dtype=torch.float32, device=self.device) * TIMESTEPS
        if not isinstance(condition, torch.Tensor):
            level = timestep.reshape(-1)
            return denoiser.forward(self.transformer, x.to(self.dtype), level, condition, self.layer).float()
        out = self.transformer(
            x.to(self.dtype),
            encoder_hidden_states=condition.expand(len(x), -1, -1),
            timestep=timestep.expand(len(x)),
            return_dict=False,
        )[0]
        return out.float()

    def velocity(
        self,
        x: torch.Tensor,
        sigma: torch.Tensor | float,
        condition: Condition,
        null: Condition,
        guidance: float,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Velocity with classifier-free guidance: u + g (c - u), float32 [B, c, h, w]; with g = 1 `null` is not used.

        `null` may have fewer rows than `condition`. `latents` [B, c, h, w] are those of the references.
        """
        width = x.shape[-1]
        if latents is not None:
            self._check_latents(latents, len(x))
            if self.editing_connector().config.noise_injection:
                x = torch.cat([x, latents.to(x)], dim=-1)
        velocity = self.predict(x, sigma, condition)
        if guidance != 1:
            unconditioned = self.predict(x, sigma, null)
            velocity = unconditioned + guidance * (velocity - unconditioned)
        return velocity[..., :width]

    def decode_pixels(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, c, h, w] to images before rounding: float32 [B, 3, H, W] in [0, 1]."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        pixels_per_image = latents.shape[-2] * latents.shape[-1] * self.vae.spatial_compression_ratio**2
        chunks = scaled.split(max(1, DECODE_PIXELS // pixels_per_image))
        return torch.cat([(self.vae.decode(chunk).sample.float() / 2 + 0.5).clamp(0, 1) for chunk in chunks])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, c, h, w] to images, uint8 [B, H, W, 3] on the latents' device."""
        return (self.decode_pixels(latents) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    @torch.no_grad()
    def encode_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Autoencoder latents times the scaling factor, float32 [B, c, h, w], of pixels [B, 3, S, S] in [-1, 1].

        S is `image_size`. DC-AE's encoder is deterministic.
        """
        size = self.image_size
        if pixels.shape[1:] != (3, size, size):
            raise UserError(f"reference pixels of shape {list(pixels.shape)}: this model needs [B, 3, {size}, {size}]")
        latents = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent
        return latents.float() * self.vae.config.scaling_factor

    def _check_latents(self, latents: torch.Tensor, count: int) -> None:
        expected = [count, *self.latent_shape]
        if list(latents.shape) != expected:
            raise UserError(f"reference latents of shape {list(latents.shape)}: this model and batch need {expected}")
