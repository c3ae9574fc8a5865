"""The renderer: hidden states of the policy to pictures.

Connector (two linear layers and a norm), SANA (a diffusion transformer that meets the connector's output in
cross-attention) and DC-AE (a convolutional autoencoder). Flow matching: x(sigma) = (1 - sigma) x0 + sigma noise, the
network predicts the velocity noise - x0, and Euler steps lead from sigma 1 to 0. Every stage is a method of its own
that works on given inputs, so that a service can batch them and a test can compare them one by one.

Facts kept from BLIP3o-NEXT, each of which is easy to get wrong:
- the condition is the *post-norm* states of the scale token and all image tokens;
- the null condition of the guidance is the connector applied to zeros, not zeros;
- sigmas are evenly spaced (shift 1), and the network's timestep is sigma * 1000;
- latents are divided by the autoencoder's scaling factor before decoding; there is no shift.

The null condition's rows are all equal, and attention over n equal rows is attention over one of them, so one row is
used.

A model that was trained to edit has a second connector, for the latents of a reference picture. What is done with
it, and all that follows for condition, null condition and input, is in `reference.py`; text-to-image samples are drawn
here in such a model too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderDC, ConfigMixin, ModelMixin, SanaTransformer2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.normalization import RMSNorm
from torch import nn

from blip3o_rl.errors import UserError

TIMESTEPS = 1000
NORM_START = 5.5**0.5
"""Initial weight of the connector's norm, as in the original."""
PARTS = ("connector", "transformer", "vae")
REFERENCE_CONNECTOR = "reference_connector"
"""The part that only editing models have."""


class Connector(ModelMixin, ConfigMixin):
    """Hidden states [..., in_features] to condition rows [..., out_features]. The defaults are the released model's."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, in_features: int = 2048, out_features: int = 2304):
        super().__init__()
        norm = RMSNorm(out_features, eps=1e-5, elementwise_affine=True)
        nn.init.constant_(norm.weight, NORM_START)
        self.layers = nn.Sequential(
            nn.Linear(in_features, out_features),
            nn.GELU(approximate="tanh"),
            nn.Linear(out_features, out_features),
            norm,
        )

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.layers(states)


class ReferenceConnector(Connector):
    """Latents of a reference picture, one row a position, to condition rows; and how the model uses references.

    The weights are `und_image_vae_connector` of the original. The defaults are the released editing model's.

    Args:
        in_features: channels of a latent.
        out_features: channels of a condition row.
        cross_attention: the rows are appended to the condition (original: not `only_use_und_image_vae_as_noise`).
        noise_injection: the latent stands beside the noise in the transformer's input (original:
            `use_und_image_vae_as_noise`).
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
        for name, part in (("connector", connector), (REFERENCE_CONNECTOR, reference_connector)):
            if part is not None and part.config.out_features != transformer.config.caption_channels:
                raise UserError(
                    f"renderer: the {name} gives {part.config.out_features} channels, the transformer takes "
                    f"{transformer.config.caption_channels}; the two are not from the same model"
                )
        if reference_connector is not None and reference_connector.config.in_features != vae.config.latent_channels:
            raise UserError(
                f"renderer: the {REFERENCE_CONNECTOR} takes {reference_connector.config.in_features} channels, the "
                f"autoencoder's latents have {vae.config.latent_channels}; the two are not from the same model"
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype = torch.float32) -> Renderer:
        """Loads `connector/`, `transformer/`, `vae/` and, if there, `reference_connector/`, in evaluation mode."""
        folder = Path(folder)
        reference_connector = None
        if (folder / REFERENCE_CONNECTOR).is_dir():
            reference_connector = ReferenceConnector.from_pretrained(folder / REFERENCE_CONNECTOR, torch_dtype=dtype)
        renderer = cls(
            Connector.from_pretrained(folder / "connector", torch_dtype=dtype),
            SanaTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
            AutoencoderDC.from_pretrained(folder / "vae", torch_dtype=dtype),
            reference_connector,
        )
        return renderer.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the parts, each with its config and safetensors; a `reference_connector/` without one is removed."""
        for part in PARTS:
            getattr(self, part).save_pretrained(Path(folder) / part)
        if self.reference_connector is not None:
            self.reference_connector.save_pretrained(Path(folder) / REFERENCE_CONNECTOR)
        elif (Path(folder) / REFERENCE_CONNECTOR).exists():
            shutil.rmtree(Path(folder) / REFERENCE_CONNECTOR)

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
        """Side of a picture in pixels."""
        return self.latent_shape[1] * self.vae.spatial_compression_ratio

    def condition(self, states: torch.Tensor) -> torch.Tensor:
        """Condition of pictures, from the post-norm states of the scale token and the image tokens.

        Args:
            states: [B, n + 1, hidden], any dtype and device.

        Returns:
            [B, n + 1, C] in the renderer's dtype.
        """
        return self.connector(states.to(self.device, self.dtype))

    def null_condition(self, n: int = 1) -> torch.Tensor:
        """Condition without content: the connector applied to zeros, [1, n, C] with n equal rows."""
        zeros = torch.zeros(1, 1, self.connector.config.in_features, device=self.device, dtype=self.dtype)
        return self.connector(zeros).expand(1, n, -1)

    def sigmas(self, steps: int) -> torch.Tensor:
        """Noise levels 1, 1 - 1/steps, ..., 1/steps, 0: float32 [steps + 1] on the CPU."""
        if steps < 1:
            raise UserError(f"steps={steps}: the renderer needs at least one step")
        return torch.cat([torch.linspace(1, 1 / steps, steps), torch.zeros(1)])

    def initial_noise(self, seeds: list[int]) -> torch.Tensor:
        """Standard normal latents, float32 [B, c, h, w]; each follows from its own seed, whatever the batch."""
        noise = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return torch.stack(noise).to(self.device)

    def predict(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: torch.Tensor) -> torch.Tensor:
        """The network's velocity for one condition, without guidance.

        Args:
            x: [B, c, h, w].
            sigma: noise level in (0, 1], one number or [B].
            condition: [B or 1, rows, C].

        Returns:
            float32 [B, c, h, w].
        """
        timestep = torch.as_tensor(sigma, dtype=torch.float32, device=self.device) * TIMESTEPS
        out = self.transformer(
            x.to(self.dtype),
            encoder_hidden_states=condition.expand(len(x), -1, -1),
            timestep=timestep.expand(len(x)),
            return_dict=False,
        )[0]
        return out.float()

    def velocity(
        self, x: torch.Tensor, sigma: torch.Tensor | float, condition: torch.Tensor, null: torch.Tensor, guidance: float
    ) -> torch.Tensor:
        """Velocity with classifier-free guidance: u + g (c - u), float32 [B, c, h, w].

        `null` may have fewer rows than `condition`; with g = 1 it is not evaluated.
        """
        conditioned = self.predict(x, sigma, condition)
        if guidance == 1:
            return conditioned
        unconditioned = self.predict(x, sigma, null)
        return unconditioned + guidance * (conditioned - unconditioned)

    def euler_step(
        self, x: torch.Tensor, velocity: torch.Tensor, sigma: torch.Tensor | float, following: torch.Tensor | float
    ) -> torch.Tensor:
        """x at noise level `following`, from x at `sigma`: x + (following - sigma) v."""
        return x + (following - sigma) * velocity

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents [B, c, h, w] to pictures, uint8 [B, H, W, 3] on the latents' device."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        pixels = self.vae.decode(scaled).sample.float()
        return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

    @torch.inference_mode()
    def render(self, states: torch.Tensor, seeds: list[int], steps: int = 30, guidance: float = 2.0) -> np.ndarray:
        """Draws one picture per row of states.

        Args:
            states: post-norm states of the scale token and the image tokens, [B, n + 1, hidden].
            seeds: B seeds of the initial noise.
            steps: Euler steps.
            guidance: 1 is none.

        Returns:
            uint8 [B, H, W, 3].
        """
        if len(states) != len(seeds):
            raise UserError(f"{len(states)} rows of states and {len(seeds)} seeds: give one seed per picture")
        condition, null = self.condition(states), self.null_condition()
        x = self.initial_noise(seeds)
        sigmas = self.sigmas(steps).tolist()
        for sigma, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            x = self.euler_step(x, self.velocity(x, sigma, condition, null, guidance), sigma, following)
        return self.decode(x).cpu().numpy()
