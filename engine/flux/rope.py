"""Rotary position embedding (RoPE, https://arxiv.org/abs/2104.09864) over FLUX's three axes, in BFL's layout."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000
_HAS_FLOAT64 = ("cpu", "cuda")


def embed_positions(ids: Tensor, axes_dims: tuple[int, ...]) -> Tensor:
    """Positions (B, L, axes) -> rotations pe (B, 1, L, head_dim/2, 2, 2) float32, computed in float64."""
    device = ids.device if ids.device.type in _HAS_FLOAT64 else torch.device("cpu")
    angles = []
    for axis, dim in enumerate(axes_dims):
        omega = THETA ** -torch.linspace(0, (dim - 2) / dim, dim // 2, dtype=torch.float64, device=device)
        angles.append(ids[..., axis, None].to(device, torch.float64) * omega)  # (B, L, dim/2)
    angle = torch.cat(angles, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    return rotation.to(ids.device, torch.float32).unsqueeze(1)


def rotate(x: Tensor, pe: Tensor) -> Tensor:
    """x (B, heads, L, head_dim) turned by pe; neighbouring channels form the pairs. Computed in float32."""
    pairs = x.float().unflatten(-1, (-1, 1, 2))  # (B, heads, L, head_dim/2, 1, 2)
    turned = torch.addcmul(pe[..., 0] * pairs[..., 0], pe[..., 1], pairs[..., 1])
    return turned.flatten(-2).to(x.dtype)
