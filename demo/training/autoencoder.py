"""The demo's VAE: pictures to latents of 16 channels at an eighth of the size, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .recipe import Recipe

LATENT_CHANNELS = 16
FLUX_SCALE, FLUX_SHIFT = 0.3611, 0.1159  # ComfyUI and diffusers turn a latent z into (z - shift) * scale for FLUX


class Autoencoder(nn.Module):
    """diffusers' `AutoencoderKL` between pictures in 0-1 and latents as FLUX sees them."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        n = len(recipe.channels)
        self.kl: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * n,
            up_block_types=("UpDecoderBlock2D",) * n,
            block_out_channels=recipe.channels,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            scaling_factor=FLUX_SCALE,
            shift_factor=FLUX_SHIFT,
        )
        self.noise = recipe.latent_noise
        self.kl.to(memory_format=torch.channels_last)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0-1 through noisy latents and back."""
        latents = self._modes(pictures)
        spread = latents.std(dim=(0, 2, 3), keepdim=True)  # with its gradient: larger latents escape no noise
        latents = latents + self.noise * spread * torch.randn_like(latents)
        return (self.kl.decode(latents).sample + 1) / 2

    def encode(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in 0-1 -> (B, 16, H/8, W/8), of zero mean and unit spread once settled."""
        return (self._modes(pictures) - FLUX_SHIFT) * FLUX_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """The inverse; values may leave 0-1 a little."""
        return (self.kl.decode(latents / FLUX_SCALE + FLUX_SHIFT).sample + 1) / 2

    def _modes(self, pictures: Tensor) -> Tensor:
        return self.kl.encode(2 * pictures - 1).latent_dist.mode()

    @torch.no_grad()
    def settle(self, pictures: Tensor) -> None:
        """Gives latents FLUX's mean and spread, measured on pictures (B, 3, H, W), by way of the 1x1 layers."""
        modes = torch.cat([self._modes(part) for part in pictures.split(16)])
        deviation, mean = (t.squeeze() for t in torch.std_mean(modes, dim=(0, 2, 3), keepdim=True))
        gain = 1 / (deviation * FLUX_SCALE)
        before, after = self.kl.quant_conv, self.kl.post_quant_conv
        before.weight[:LATENT_CHANNELS] *= gain[:, None, None, None]
        before.bias[:LATENT_CHANNELS] = (before.bias[:LATENT_CHANNELS] - mean) * gain + FLUX_SHIFT
        after.bias += after.weight[:, :, 0, 0] @ (mean - FLUX_SHIFT / gain)
        after.weight /= gain[None, :, None, None]
