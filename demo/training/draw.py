"""Scenes to pictures, many at a time, on any device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .scenes import COLORS, SHAPES, TEXTURES, Scene, Texture, Thing

ATLAS_SIDE, ATLAS_REACH = 160, 1.6  # samples along a side, and how far from the middle they reach, in radii
FAR_AWAY = Thing("circle", "black", -9.0, -9.0, 0.1)


def draw(scenes: Sequence[Scene], height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Scenes -> (B, 3, height, width) float32 in 0-1, edges antialiased."""
    side = min(height, width)
    rows = (torch.arange(height, device=device) + 0.5) / side
    columns = (torch.arange(width, device=device) + 0.5) / side
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    pixel = 1 / side
    ground = [_tones(scene.color) + _texture(scene.texture) for scene in scenes]
    picture = _paint(torch.tensor(ground, device=device), x[None], y[None], pixel)
    for i in range(max((len(scene.things) for scene in scenes), default=0)):
        things = [scene.things[i] if i < len(scene.things) else FAR_AWAY for scene in scenes]
        where = torch.tensor([[t.x, t.y, t.radius, math.cos(t.angle), math.sin(t.angle)] for t in things])
        center_x, center_y, radius, cos, sin = where.to(device)[:, :, None, None].unbind(1)
        u, v = _turn(x - center_x, y - center_y, cos, sin)
        shapes = [SHAPES.index(thing.shape) for thing in things]
        grid = torch.stack((u, v), dim=-1) / (radius[..., None] * ATLAS_REACH)
        atlas = _atlas().to(device)[shapes]
        distance = F.grid_sample(atlas, grid, padding_mode="border", align_corners=True)[:, 0] * radius
        paint = torch.tensor([_tones(t.color) + _texture(t.texture) for t in things], device=device)
        opacity = (0.5 - distance / pixel).clamp(0, 1)[:, None]
        picture = torch.lerp(picture, _paint(paint, u, v, pixel), opacity)
    return picture


def _tones(name: str) -> tuple[float, ...]:
    """A color and its second tone: darker, for dark colors lighter."""
    color = COLORS[name]
    dark = sum(color) < 0.75
    return color + tuple(c + (1 - c) * 0.35 if dark else c * 0.62 for c in color)


def _texture(texture: Texture) -> tuple[float, ...]:
    cos, sin = math.cos(texture.angle), math.sin(texture.angle)
    return (float(TEXTURES.index(texture.kind)), texture.period, cos, sin, *texture.phase)


def _turn(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return x * cos + y * sin, y * cos - x * sin


def _paint(paint: Tensor, x: Tensor, y: Tensor, pixel: float) -> Tensor:
    """paint (B, 12): two tones, then the texture; x, y (B or 1, H, W) -> (B, 3, H, W)."""
    kind, period, cos, sin, phase_x, phase_y = paint[:, 6:, None, None].unbind(1)
    u, v = _turn(x, y, cos, sin)
    u, v = u / period + phase_x, v / period + phase_y
    wave_u, wave_v = (((2 * math.pi * w).sin() * period / (math.pi * pixel)).clamp(-1, 1) for w in (u, v))
    dot = torch.hypot(u - u.round(), v - v.round()) * period
    share = torch.zeros_like(wave_u)
    share = torch.where(kind == TEXTURES.index("striped"), (1 + wave_u) / 2, share)
    share = torch.where(kind == TEXTURES.index("dotted"), (0.5 + (0.3 * period - dot) / pixel).clamp(0, 1), share)
    share = torch.where(kind == TEXTURES.index("checkered"), (1 + wave_u * wave_v) / 2, share)
    return torch.lerp(paint[:, :3, None, None], paint[:, 3:6, None, None], share[:, None])


@cache
def _atlas() -> Tensor:
    """Signed distance to the border of every shape of radius 1, negative inside: (shapes, 1, side, side)."""
    axis = np.linspace(-ATLAS_REACH, ATLAS_REACH, ATLAS_SIDE)
    x, y = np.meshgrid(axis, axis)
    fields = {
        "circle": np.hypot(x, y) - 0.95,
        "ring": np.abs(np.hypot(x, y) - 0.7) - 0.25,
        "moon": np.maximum(np.hypot(x, y) - 1, 0.8 - np.hypot(x - 0.45, y + 0.1)),
    }
    fields |= {name: _polygon_distance(corners, x, y) for name, corners in _polygons().items()}
    return torch.tensor(np.stack([fields[shape] for shape in SHAPES]), dtype=torch.float32)[:, None]


def _polygons() -> dict[str, np.ndarray]:
    """Corners (n, 2) of every shape with corners, and of the heart."""
    t = np.linspace(0, 2 * math.pi, 96, endpoint=False)
    heart_x = 16 * np.sin(t) ** 3
    heart_y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    arm = 0.34
    cross = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
    cross += [(-px, -py) for px, py in cross]
    return {
        "square": _regular(4, 1.1, math.pi / 4),
        "triangle": _regular(3, 1.1, -math.pi / 2),
        "hexagon": _regular(6, 1.0, 0.0),
        "diamond": _regular(4, 1.0, 0.0) * (0.72, 1.1),
        "star": np.stack((_regular(5, 1.08, -math.pi / 2), _regular(5, 0.45, -math.pi / 2 + math.pi / 5)), 1).reshape(
            -1, 2
        ),
        "heart": np.stack((heart_x, heart_y), axis=1) / 16.5,
        "cross": np.array(cross),
    }


def _regular(n: int, radius: float, first: float) -> np.ndarray:
    angles = first + 2 * math.pi * np.arange(n) / n
    return radius * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def _polygon_distance(corners: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance of every point to the polygon's nearest edge, negative inside (even-odd rule)."""
    points = np.stack((x, y), axis=-1)
    nearest = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, bool)
    for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        along = np.clip(((points - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
        nearest = np.minimum(nearest, np.linalg.norm(points - a - along[..., None] * (b - a), axis=-1))
        if a[1] != b[1]:
            crosses = (a[1] > y) != (b[1] > y)
            inside ^= crosses & (x < (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) + a[0])
    return np.where(inside, -nearest, nearest)
