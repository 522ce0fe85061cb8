"""The lesson of guidance: classifier-free guidance into the guidance embedder, and nowhere else.

With the other weights left alone, pictures of guidance 1 stay what they are; trained along, they got worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...engine.flux.loop import embed_scalar

FASTEST = 0.35  # radians by which a wave may turn from one guidance to the next: by faster ones 2 and 2.5 are strangers


@contextmanager
def guidance_embedder_alone(model: nn.Module, embedder: nn.Module) -> Iterator[None]:
    """Within, a model's gradients go to its guidance embedder, which begins anew: every guidance as 1 was.

    At the end guidance 1 is again what it was, in the BF16 in which the weights are stored.
    """
    first, last = (module for module in embedder.children() if isinstance(module, nn.Linear))
    one = torch.ones(1, device=last.bias.device)

    def embedded() -> Tensor:
        return embed_scalar(embedder, one, one)[0]

    with torch.no_grad():
        wanted = embedded()
        slow = slow_waves(first)
        nn.init.normal_(first.weight, std=float(slow.sum().rsqrt())).mul_(slow)
        nn.init.normal_(first.bias)
        nn.init.zeros_(last.weight)
        last.bias.copy_(wanted)
    model.requires_grad_(False)
    embedder.requires_grad_(True)
    hook = first.weight.register_hook(lambda gradient: gradient * slow)
    yield
    hook.remove()
    model.requires_grad_(True)
    with torch.no_grad():
        for parameter in (first.weight, first.bias, last.weight):
            parameter.copy_(parameter.bfloat16())
        last.bias.copy_(last.bias + wanted - embedded())


def slow_waves(first: nn.Linear) -> Tensor:
    """(256,) 1 for the cosines and sines of guidance that turn slowly enough, else 0; on the layer's device."""
    half = first.in_features // 2
    turns = 1000 * 10000 ** (-torch.arange(half, device=first.weight.device) / half)
    return (turns <= FASTEST).float().repeat(2)
