"""The autoencoder's lessons: crops and small pictures, then whole ones."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from ...engine.metrics.ssim import ssim
from ...engine.training.loop import Loop
from .autoencoder import Autoencoder
from .draw import draw
from .edits import KINDS, random_edit
from .recipe import Recipe

Report = Callable[[str], None]


def train_autoencoder(recipe: Recipe, device: torch.device, seed: int, report: Report) -> Autoencoder:
    """A new one, settled; every process starts from the same weights and ends with them."""
    torch.manual_seed(recipe.seed)
    model = Autoencoder(recipe).to(device)
    crop, whole = sides = recipe.side // 2, recipe.side
    pools = {side: _pictures(recipe.pictures, side, Random(f"{seed} {side}"), device) for side in sides}
    whole_from = recipe.autoencoder_steps * 2 // 3

    def sample(step: int, generator: torch.Generator) -> Tensor:
        if step >= whole_from:
            return _choose(pools[whole], max(1, recipe.autoencoder_batch // 3), generator)
        chosen = _choose(pools[whole if step % 2 else crop], recipe.autoencoder_batch, generator)
        return _crop(chosen, crop, generator)

    _learn(model, recipe.autoencoder_steps, recipe.autoencoder_rate, sample, seed, report)
    shared = _pictures(min(256, recipe.pictures), whole, Random("settle"), device)  # alike for all processes
    model.settle(shared.float() / 255)
    return model


def _learn(
    model: Autoencoder,
    n_steps: int,
    rate: float,
    sample: Callable[[int, torch.Generator], Tensor],
    seed: int,
    report: Report,
) -> None:
    device = next(model.parameters()).device
    loop = Loop(model, n_steps, rate, decay_from=0.3)
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        pictures = (sample(step, generator).float() / 255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16):
            back = model(pictures)
        return F.l1_loss(back.float(), pictures) + 0.25 * (1 - ssim(back, pictures).mean())

    loop.run(loss, report=lambda text: report(f"autoencoder: {text}"), report_every=max(1, n_steps // 20))
    model.load_state_dict(loop.ema.module.state_dict())


def _choose(pool: Tensor, n: int, generator: torch.Generator) -> Tensor:
    return pool[torch.randint(len(pool), (n,), generator=generator)]


def _crop(pictures: Tensor, side: int, generator: torch.Generator) -> Tensor:
    top, left = (int(v) for v in torch.randint(pictures.shape[-1] - side + 1, (2,), generator=generator))
    return pictures[..., top : top + side, left : left + side]


def _pictures(n: int, side: int, rng: Random, device: torch.device) -> Tensor:
    """n results of random edits, (n, 3, side, side) uint8."""
    kinds = [kind for kinds in KINDS.values() for kind in kinds]
    scenes = [random_edit(rng.choice(kinds), rng).result for _ in range(n)]
    drawn = [draw(scenes[i : i + 250], side, side, device) for i in range(0, n, 250)]
    return torch.cat([(255 * part).round().byte() for part in drawn])
