"""Flow matching with reference images (rectified flow, https://arxiv.org/abs/2209.03003; FLUX.1 Kontext,
https://arxiv.org/abs/2506.15742) and the distillation of classifier-free guidance (https://arxiv.org/abs/2210.03142).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..flux.compiled import compiled_parts
from ..flux.hooks import BlockHooks
from ..flux.loop import predict_velocity
from ..flux.positions import lay_out, unpatchify


class CompiledBlocks(BlockHooks):
    """Every block through Inductor, compiled once for all blocks and sizes."""

    rotates = True

    def __init__(self) -> None:
        self.parts = compiled_parts()


@dataclass(frozen=True)
class Conditions:
    """What a velocity depends on beside the noisy latent and sigma.

    context: (B, L, D) text states; pooled: (B, D); guidance: (B,); references: clean latents (B, C, h, w) each, placed
    by `method`, one of `flux.positions.METHODS`.
    """

    context: Tensor
    pooled: Tensor
    guidance: Tensor
    references: Sequence[Tensor] = ()
    method: str = "offset"


def velocity(
    transformer: torch.nn.Module, x: Tensor, sigma: Tensor, given: Conditions, hooks: BlockHooks | None = None
) -> Tensor:
    """Velocity (B, C, H, W), which points from picture to noise, at x (B, C, H, W) and sigma (B,) in 0-1."""
    tokens, img_ids = lay_out([x, *given.references], given.method)
    txt_ids = img_ids.new_zeros(1, given.context.shape[1], 3)
    out = predict_velocity(
        transformer,
        torch.cat(tokens, dim=1),
        img_ids,
        given.context,
        txt_ids,
        sigma,
        given.pooled,
        given.guidance,
        n_target=tokens[0].shape[1],
        hooks=hooks,
    )
    return unpatchify(out, *x.shape[-2:])


def flow_matching_errors(
    transformer: torch.nn.Module,
    clean: Tensor,
    noise: Tensor,
    sigma: Tensor,
    given: Conditions,
    hooks: BlockHooks | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """(B,): mean squared error of the velocity on the straight line from `clean` (B, C, H, W) to `noise`.

    weight: (B, 1, H, W), how much each place counts, 1 by default.
    """
    x = torch.lerp(clean, noise, sigma[:, None, None, None])
    error = (velocity(transformer, x, sigma, given, hooks).float() - (noise - clean)).square()
    return (error if weight is None else error * weight).mean(dim=(1, 2, 3))


def guidance_loss(
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    x: Tensor,
    sigma: Tensor,
    given: Conditions,
    taught: Conditions,
    without_text: Conditions,
    hooks: BlockHooks | None = None,
) -> Tensor:
    """Mean squared error of the student, which reads `given.guidance`, against its teacher so guided, both over that
    guidance: unscaled, the strongest alone are learnt and those near 1 unlearnt.

    The teacher always reads guidance 1, which is its own velocity for `taught`; 0 would be the one `without_text`.
    """
    plain = torch.ones_like(given.guidance)
    with torch.no_grad():
        conditional = velocity(teacher, x, sigma, replace(taught, guidance=plain), hooks).float()
        unconditional = velocity(teacher, x, sigma, replace(without_text, guidance=plain), hooks).float()
        target = torch.lerp(unconditional, conditional, given.guidance[:, None, None, None])
    error = velocity(student, x, sigma, given, hooks).float() - target
    return (error / given.guidance[:, None, None, None]).square().mean()


def draw_sigmas(n: int, generator: torch.Generator, shift: float = 1.0) -> Tensor:
    """n noise levels in 0-1 on the generator's device: uniform, then moved towards noise by a shift above 1.

    Samplers move theirs by the same formula (https://arxiv.org/abs/2403.03206, equation 23).
    """
    t = torch.rand(n, generator=generator, device=generator.device)
    return shift * t / (1 + (shift - 1) * t)
