"""What is done with each reference before it is encoded, and where it then stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ..flux.positions import GRID, PATCH, place_references
from .pictures import bring_to, stitch, token_mask
from .sizes import MEGAPIXEL, Fit, Size, deviation, n_tokens, shares, size_on_grid
from .weights import Weights

STITCHED = "stitched"
LAYOUTS = ("offset", "index", STITCHED)
LATENT = GRID // PATCH  # pixels along the side of a latent pixel


@dataclass(frozen=True)
class Reference:
    """A picture (1, H, W, 3) in 0-1 and how it counts: weight 0-1; megapixels wished for, 0 as many as the result;
    mask (H, W): what of it is seen, None all. name: of its input."""

    picture: Tensor
    weight: float = 1.0
    megapixels: float = 0.0
    mask: Tensor | None = None
    name: str = ""

    @property
    def shape(self) -> Size:
        """Width and height in pixels."""
        return self.picture.shape[2], self.picture.shape[1]


@dataclass(frozen=True)
class Placed:
    """A reference as the model sees it. pixels (1, h, w, 3); weights: of its tokens; left, top: in pixels, on the
    plane of its index."""

    reference: Reference
    pixels: Tensor
    weights: Weights
    index: int = 1
    left: int = 0
    top: int = 0

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.pixels.shape[2], self.pixels.shape[1]

    @property
    def n_seen(self) -> int:
        """Tokens that are computed."""
        return sum(weight > 0 for weight in self.weights) if len(self.weights) > 1 else n_tokens(self.size)


@dataclass(frozen=True)
class Plan:
    """size: of the result; placed: the references of a weight above 0; layout: one of LAYOUTS."""

    size: Size
    placed: tuple[Placed, ...]
    layout: str
    left_out: tuple[Reference, ...] = field(default=())

    @property
    def n_target(self) -> int:
        """Tokens of the result."""
        return n_tokens(self.size)

    @property
    def n_references(self) -> int:
        """Tokens of all references."""
        return sum(each.n_seen for each in self.placed)

    def encoded(self) -> list[tuple[Tensor, Weights]]:
        """What goes through the VAE, pictures (1, h, w, 3), and the weights of their tokens."""
        if self.layout != STITCHED or not self.placed:
            return [(each.pixels, each.weights) for each in self.placed]
        canvas = stitch([each.pixels for each in self.placed], [(each.left, each.top) for each in self.placed])
        columns, rows = canvas.shape[2] // GRID, canvas.shape[1] // GRID
        weights = [0.0] * (columns * rows)  # of the canvas between pictures nothing is seen
        for each in self.placed:
            width, height = (side // GRID for side in each.size)
            some = each.weights if len(each.weights) > 1 else (each.reference.weight,) * (width * height)
            for row in range(height):
                start = (each.top // GRID + row) * columns + each.left // GRID
                weights[start : start + width] = some[row * width : (row + 1) * width]
        return [(canvas, tuple(weights))]


def result_size(shape: Size, megapixels: float) -> Size:
    """Of a result in the shape of a reference; megapixels 0: of the reference's own size."""
    return size_on_grid(shape, megapixels or shape[0] * shape[1] / MEGAPIXEL)


def plan(references: Sequence[Reference], size: Size, layout: str, total_megapixels: float, fit: Fit) -> Plan:
    """Sizes and places. total_megapixels: of all references together, 0 without a limit."""
    seen = [each for each in references if each.weight > 0 and (each.mask is None or (each.mask > 0.5).any())]
    own = n_tokens(size) * GRID * GRID / MEGAPIXEL
    wishes = [each.megapixels or own for each in seen]
    granted = shares(wishes, total_megapixels)
    sizes = [size_on_grid(r.shape, share, share < wish) for r, share, wish in zip(seen, granted, wishes, strict=True)]
    latents = [(height // LATENT, width // LATENT) for width, height in sizes]
    target = size[1] // LATENT, size[0] // LATENT
    places = place_references(target, latents, "index" if layout == "index" else "offset")
    placed = []
    for each, its_size, place in zip(seen, sizes, places, strict=True):
        pixels = bring_to(each.picture, its_size, fit)
        weights: Weights = (each.weight,)
        if each.mask is not None:
            kept = token_mask(each.mask, its_size, fit).flatten().tolist()
            weights = tuple(each.weight if keep else 0.0 for keep in kept)
        placed.append(Placed(each, pixels, weights, int(place.index), place.column * LATENT, place.row * LATENT))
    left_out = tuple(each for each in references if not any(each is other for other in seen))
    return Plan(size, tuple(placed), layout, left_out)


def describe(each: Placed, fit: Fit) -> str:
    """A line about a reference: what was scaled, and why its shape changed."""
    r = each.reference
    words = f"{r.name}: {r.shape[0]}x{r.shape[1]}"
    if each.size != r.shape:
        words += f" scaled to {each.size[0]}x{each.size[1]}"
    if bent := deviation(r.shape, each.size):
        words += f" ({abs(bent):.2%} off its shape, {_BENT[fit]})"
    words += f", {each.n_seen} tokens"
    if each.n_seen < n_tokens(each.size):
        words += f" of {n_tokens(each.size)} (the mask leaves out the others)"
    return words + ("" if r.weight == 1 else f", weight {r.weight:g}")


_BENT = {"pad": "padded", "crop": "cropped", "fit": "stretched"}
