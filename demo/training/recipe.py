"""How large the demo model is, how long it learns and from how much."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]  # height and width in pixels


@dataclass(frozen=True)
class Recipe:
    """Steps are optimizer steps, sides are pixels; a batch is one process's."""

    seed: int = 20261124
    side: int = 256  # pixels of most pictures
    # the transformer
    width: int = 256  # of tokens and of words; heads are 128 wide
    n_double: int = 2
    n_single: int = 6
    # the autoencoder
    channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_noise: float = 0.1  # added to latents of unit spread while it learns, so that decoding forgives
    pictures: int = 12000
    autoencoder_steps: int = 4600
    autoencoder_batch: int = 18
    autoencoder_rate: float = 6e-4
    # the transformer's lessons
    rate: float = 8e-4
    n_main: int = 60000  # edits of pictures of that side
    n_other: int = 8000  # edits of each other size
    other_sizes: tuple[Size, ...] = ((128, 128), (192, 256), (256, 192), (320, 192), (192, 320), (384, 384), (512, 512))
    edit_steps: int = 20000
    guidance_steps: int = 700
    guidance_rate: float = 1e-3
    most_guidance: float = 10.0
    dropped_prompts: float = 0.1
    tokens: int = 120000  # a batch holds about so many, whatever the size of its pictures
    kept: float = 0.0  # share of the weights gone on from in those that are exported (arXiv:2109.01903)


# From exported weights, on three cards in twenty minutes. Many edits, each seen some times, and the hard ones more
# often: with 40,000, seen fifty times each, nothing was gained (benchmarks/results/demo_training_tried.log).
GOING_ON = Recipe(seed=20261128, rate=5e-4, n_main=240000, edit_steps=10000, guidance_steps=400, kept=0.5)

# From exported weights, on two CPU cores in half an hour.
GUIDANCE = Recipe(seed=20261126, n_main=1200, n_other=40, edit_steps=0, guidance_steps=900, tokens=4800)

SMOKE = Recipe(
    side=64,
    n_double=1,
    n_single=1,
    pictures=4,
    autoencoder_steps=2,
    autoencoder_batch=2,
    n_main=10,
    n_other=4,
    other_sizes=((64, 96),),
    edit_steps=2,
    guidance_steps=2,
    tokens=200,
)
