"""What a picture of the demo's world holds: a background and a few things on it.

Lengths are in units of the picture's shorter side, angles in radians; x runs right, y runs down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from random import Random

COLORS = {
    "red": (0.86, 0.15, 0.14),
    "orange": (0.96, 0.54, 0.09),
    "yellow": (0.97, 0.87, 0.22),
    "green": (0.17, 0.60, 0.24),
    "cyan": (0.30, 0.80, 0.84),
    "blue": (0.14, 0.28, 0.80),
    "purple": (0.50, 0.20, 0.66),
    "pink": (0.97, 0.58, 0.76),
    "brown": (0.45, 0.27, 0.13),
    "white": (0.96, 0.96, 0.95),
    "gray": (0.56, 0.57, 0.58),
    "black": (0.08, 0.08, 0.09),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "ring", "cross", "moon", "hexagon", "diamond")
TEXTURES = ("plain", "striped", "dotted", "checkered")
RADII = {"small": (0.11, 0.14), "large": (0.17, 0.21)}
SETTLED_RADIUS = {"small": 0.125, "large": 0.19}  # of a thing that a prompt asks for
SETTLED_ANGLE = {"striped": math.pi / 4, "dotted": 0.0, "checkered": 0.0}  # of a texture that a prompt asks for
PLACES = {  # where a prompt can put a thing: column and row, each first, middle or last
    f"{row} {column}".strip() or "middle": (x, y)
    for y, row in enumerate(("top", "", "bottom"))
    for x, column in enumerate(("left", "", "right"))
}
MARGIN = 0.23  # of the outer places from the border
EDGE = 0.02  # between a thing and the border
MIN_CONTRAST = 0.3  # between a thing and what lies behind it, of the channel that differs most


@dataclass(frozen=True)
class Texture:
    """A pattern of two tones: its period, its direction and where it begins."""

    kind: str = "plain"
    period: float = 0.085
    angle: float = 0.0
    phase: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Thing:
    """One shape, its texture moving with it."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    texture: Texture = Texture()


@dataclass(frozen=True)
class Scene:
    """A background and things, the last on top; width and height are at least 1, the shorter is 1."""

    color: str
    texture: Texture = Texture()
    things: tuple[Thing, ...] = ()
    width: float = 1.0
    height: float = 1.0

    def thing(self, shape: str) -> Thing:
        """The one thing of a shape."""
        return next(thing for thing in self.things if thing.shape == shape)

    def without(self, shape: str) -> tuple[Thing, ...]:
        """All things but the one of a shape."""
        return tuple(thing for thing in self.things if thing.shape != shape)


@dataclass
class Draw:
    """Random parts of scenes, all from one generator."""

    rng: Random
    width: float = 1.0
    height: float = 1.0

    def scene(self, n_things: int) -> Scene:
        """A scene of at most `n_things` things, all of different shapes, as many as find room."""
        color = self.rng.choice(list(COLORS))
        shapes = self.rng.sample(SHAPES, n_things)
        things: list[Thing] = []
        for shape in shapes:
            for _ in range(20):
                radius = self.rng.uniform(*RADII[self.rng.choice(("small", "large"))])
                edge = radius + EDGE
                x, y = self.rng.uniform(edge, self.width - edge), self.rng.uniform(edge, self.height - edge)
                thing = Thing(shape, self.color(color), x, y, radius, self.rng.uniform(-0.25, 0.25), self.texture())
                if fits(thing, things):
                    things.append(thing)
                    break
        return Scene(color, self.background_texture(), tuple(things), self.width, self.height)

    def holds(self, thing: Thing) -> bool:
        """Whether a thing stands in the picture as its scenes' things do."""
        edge = thing.radius + EDGE
        return edge <= thing.x <= self.width - edge and edge <= thing.y <= self.height - edge

    def color(self, *behind: str) -> str:
        """A color that stands out against every one of `behind`."""
        return self.rng.choice([color for color in COLORS if all(stands_out(color, other) for other in behind)])

    def texture(self) -> Texture:
        """A thing's texture, half of them plain."""
        kind = self.rng.choice(("plain", "plain", "plain", *TEXTURES[1:]))
        return self._texture(kind, 0.07, 0.1)

    def background_texture(self) -> Texture:
        """A background's texture, wider than a thing's."""
        return self._texture(self.rng.choice(("plain", *TEXTURES)), 0.13, 0.2)

    def _texture(self, kind: str, shortest: float, longest: float) -> Texture:
        if kind == "plain":
            return Texture()
        phase = (self.rng.random(), self.rng.random())
        return Texture(kind, self.rng.uniform(shortest, longest), self.rng.uniform(0, math.pi), phase)


def settled_texture(kind: str) -> Texture:
    """The texture a prompt asks of a background."""
    return Texture() if kind == "plain" else Texture(kind, 0.16, SETTLED_ANGLE[kind])


def wearing(thing: Thing, kind: str) -> Thing:
    """A thing in the texture a prompt asks of it: it lies on the picture's grid, wherever the thing stands."""
    if kind == "plain":
        return replace(thing, texture=Texture())
    period = math.sqrt(2) / 16 if kind == "striped" else 1 / 12  # so that it repeats every eighth or twelfth
    angle = SETTLED_ANGLE[kind]
    cos, sin = math.cos(angle), math.sin(angle)
    phase = (thing.x * cos + thing.y * sin) / period, (thing.y * cos - thing.x * sin) / period
    return replace(thing, texture=Texture(kind, period, angle - thing.angle, phase))


def place(name: str, width: float, height: float) -> tuple[float, float]:
    """x and y of a named place."""
    column, row = PLACES[name]
    return (MARGIN, width / 2, width - MARGIN)[column], (MARGIN, height / 2, height - MARGIN)[row]


def fits(thing: Thing, others: list[Thing] | tuple[Thing, ...]) -> bool:
    """Whether a thing hides none of the others more than a little."""
    return all(math.hypot(thing.x - o.x, thing.y - o.y) > 0.75 * (thing.radius + o.radius) for o in others)


def stands_out(color: str, other: str) -> bool:
    """Whether two colors are told apart easily."""
    return max(abs(a - b) for a, b in zip(COLORS[color], COLORS[other], strict=True)) >= MIN_CONTRAST
