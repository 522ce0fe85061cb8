"""Held-out edits of the demo's world, made by the demo model in real ComfyUI and judged by program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from PIL import Image
from torch import Tensor

SHARES = {  # of every thousand edits; one reference, two, three
    **dict.fromkeys(("recolor", "texture", "remove", "add", "move", "background"), 130),
    "combine two": 120,
    "combine three": 100,
}
Size = tuple[int, int]  # height and width in pixels
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Settings:
    """How a picture is made, without a second guidance. sampler, scheduler: ComfyUI's names."""

    steps: int = 28
    guidance: float = 1.0
    size: Size = (256, 256)
    masked: bool = False  # change only where something should change
    sampler: str = "euler"
    scheduler: str = "simple"


def held_out(n: int) -> dict[str, list[Any]]:
    """About n edits by kind, from seeds that training never drew."""
    from kontextkit.demo.training.edits import random_edit

    edits = {}
    for kind, share in SHARES.items():
        rng = Random(f"held out {kind}")
        edits[kind] = [random_edit(kind, rng) for _ in range(max(1, round(n * share / 1000)))]
    return edits


class Editor:
    """KontextLoadDemo's three outputs and ComfyUI's nodes, many pictures at a time."""

    def __init__(self, precision: str = "BF16", at_once: int | None = None):
        """at_once: pictures in a batch."""
        from kontextkit.bridge.demo import load_demo

        self.model, self.clip, self.vae = load_demo(precision)
        self.at_once = at_once or (50 if DEVICE == "cuda" else 4)

    def judge(self, edits: Sequence[Any], settings: Settings) -> tuple[list[bool], list[float], Tensor]:
        """Success and SSIM to the right picture of each edit, and the pictures (n, 3, H, W)."""
        from kontextkit.demo.training.judge import judge

        successes, likenesses, pictures = [], [], []
        for i in range(0, len(edits), self.at_once):
            right, references = truth(edits[i : i + self.at_once], settings.size)
            prompts = [edit.prompt for edit in edits[i : i + self.at_once]]
            result = self.edit(prompts, references, settings, seed=i, right=right)
            verdict = judge(references[0], right, result)
            successes += verdict.success.tolist()
            likenesses += verdict.ssim.tolist()
            pictures.append(result)
        return successes, likenesses, torch.cat(pictures)

    def edit(
        self, prompts: Sequence[str], references: list[Tensor], settings: Settings, seed: int, right: Tensor
    ) -> Tensor:
        """Pictures (B, 3, H, W) made from B prompts and references (B, 3, H, W) each."""
        import nodes

        latents = [self.vae.encode(picture.movedim(1, -1)) for picture in references]
        positive = self.conditions(prompts, latents, settings.guidance)
        start: dict[str, Any] = {"samples": torch.zeros_like(latents[0])}
        if settings.masked:
            start = {"samples": latents[0], "noise_mask": change_mask(references[0], right)}
        how = (settings.steps, 1.0, settings.sampler, settings.scheduler)
        (made,) = nodes.common_ksampler(self.model, seed, *how, positive, self.encode([""]), start)
        return self.decode(made["samples"])

    def conditions(self, prompts: Sequence[str], latents: list[Tensor], guidance: float) -> list[list[Any]]:
        """One conditioning for B prompts and references' latents (B, 16, h, w) each."""
        import node_helpers

        values: dict[str, Any] = {"guidance": guidance}
        positive = node_helpers.conditioning_set_values(self.encode(prompts), values)
        for latent in latents:
            positive = node_helpers.conditioning_set_values(positive, {"reference_latents": [latent]}, append=True)
        return positive

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in 0-1."""
        return self.vae.decode(latents).movedim(-1, 1).float().clamp(0, 1).to(DEVICE)

    def encode(self, prompts: Sequence[str]) -> list[list[Any]]:
        """One conditioning for all prompts, as CLIPTextEncode makes it for one."""
        parts = [self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))[0] for prompt in prompts]
        pooled = torch.cat([given["pooled_output"] for _, given in parts])
        return [[torch.cat([context for context, _ in parts]), {"pooled_output": pooled}]]


def truth(edits: Sequence[Any], size: Size) -> tuple[Tensor, list[Tensor]]:
    """The right pictures (B, 3, H, W) and the references, in 8 bits as files have them."""
    from kontextkit.demo.training.draw import draw

    columns = zip(*((edit.result, *edit.references) for edit in edits), strict=True)
    right, *references = [(draw(scenes, *size, DEVICE) * 255).round() / 255 for scenes in columns]
    return right, references


def image(picture: Tensor) -> Image.Image:
    """(3, H, W) in 0-1 as a PIL picture."""
    return Image.fromarray((picture.movedim(0, -1) * 255).round().byte().cpu().numpy())


def change_mask(before: Tensor, right: Tensor) -> Tensor:
    """(B, H, W): 1 in the box around what should change, 8 pixels wider; as a person would paint it."""
    changed = (before - right).abs().amax(dim=1) > 0.05
    mask = torch.zeros_like(changed, dtype=torch.float32)
    for one, area in zip(mask, changed, strict=True):
        rows, columns = area.any(1).nonzero(), area.any(0).nonzero()
        if len(rows):
            (top, bottom), (left, right_end) = ((int(side.min()), int(side.max())) for side in (rows, columns))
            one[max(0, top - 8) : bottom + 9, max(0, left - 8) : right_end + 9] = 1
    return mask
