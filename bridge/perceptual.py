"""Likenesses that a trained network sees, where the user has one: CLIP's through ComfyUI, LPIPS by its package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ALEXNET = "alexnet-owt-7be5be79.pth"  # which torchvision keeps for LPIPS; it is never downloaded from here
Values = list[float] | str  # one for each pair, or why there is none


def clip_similarity(clip_vision: Any | None, a: Tensor, b: Tensor) -> Values:
    """Cosine of the CLIP embeddings of pictures (B, 3, H, W) in 0-1, pair by pair: 1 for the same, lower for others."""
    if clip_vision is None:
        return "no clip_vision is connected (Load CLIP Vision)"
    found = []
    for pair in zip(a, b, strict=True):
        one, other = (clip_vision.encode_image(x.movedim(0, -1)[None].float())["image_embeds"].float() for x in pair)
        found.append(torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1)).item())
    return found


def lpips_distance(a: Tensor, b: Tensor) -> Values:
    """LPIPS (AlexNet) of pictures (B, 3, H, W) in 0-1, pair by pair: 0 for the same. Zhang et al., arXiv 1801.03924."""
    if find_spec("lpips") is None:
        return "the package lpips is not installed (pip install lpips)"
    if not Path(torch.hub.get_dir(), "checkpoints", ALEXNET).exists():
        return f"its network's weights are not in {Path('checkpoints', ALEXNET)} of torch's hub folder"
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval()
    with torch.no_grad():
        return [
            network(x[None].float().cpu() * 2 - 1, y[None].float().cpu() * 2 - 1).item()
            for x, y in zip(a, b, strict=True)
        ]
