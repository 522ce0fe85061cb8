"""A quick look at held-out edits while training; `benchmarks/demo_quality.py` measures through ComfyUI."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import torch
from torch import Tensor

from ...engine.flux.hooks import BlockHooks
from ...engine.training.flow_matching import Conditions, velocity
from ...engine.words.vocabulary import Vocabulary
from .autoencoder import Autoencoder
from .draw import draw
from .edits import KINDS, random_edit
from .judge import judge
from .lessons import DemoModel
from .pool import word_ids

SHIFT = 3.16  # of ComfyUI's noise levels for FLUX.1 [dev], exp(1.15)


@torch.no_grad()
def look(
    model: DemoModel,
    autoencoder: Autoencoder,
    vocabulary: Vocabulary,
    device: torch.device,
    n_each: int,
    n_steps: int,
    guidance: float,
    side: int,
    hooks: BlockHooks | None = None,
) -> str:
    """Success and SSIM of n edits of every kind, as a line."""
    words = []
    for kinds in list(KINDS.values())[1:]:
        for kind in kinds:
            rng = Random(f"probe {kind}")
            edits = [random_edit(kind, rng) for _ in range(n_each)]
            columns = zip(*((edit.result, *edit.references) for edit in edits), strict=True)
            right, *references = [draw(scenes, side, side, device) for scenes in columns]
            ids = torch.tensor([word_ids(edit.prompt, vocabulary) for edit in edits], device=device)
            with torch.autocast(device.type, torch.bfloat16):
                context, pooled = model.words(ids)
                clean = [autoencoder.encode(picture).float() for picture in references]
                given = Conditions(context, pooled, torch.full((n_each,), guidance, device=device), clean)
                result = autoencoder.decode(sample(model, given, n_steps, hooks)).float().clamp(0, 1)
            verdict = judge(references[0], right, result)
            words.append(f"{kind} {verdict.success.float().mean():.2f}/{verdict.ssim.mean():.3f}")
    return f"success/SSIM at guidance {guidance}: " + ", ".join(words)


def sample(model: DemoModel, given: Conditions, n_steps: int, hooks: BlockHooks | None = None) -> Tensor:
    """Euler steps from noise, seeded; pictures of the first reference's size."""
    like = given.references[0]
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like.device)
    t = torch.linspace(1, 0, n_steps + 1)
    sigmas = SHIFT * t / (1 + (SHIFT - 1) * t)
    for sigma, following in pairwise(sigmas):
        at = torch.full((len(x),), float(sigma), device=x.device)
        x = x + (following - sigma) * velocity(model.transformer, x, at, given, hooks).float()
    return x
