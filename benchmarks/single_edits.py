"""Held-out edits made one at a time, as a user does: in a batch, a cache would decide once for all of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import held_out
import torch
from held_out import Editor, Settings
from sampling import Optimized
from torch import Tensor

Steps = tuple[int, ...]  # the steps that were computed, from 0


@dataclass(frozen=True)
class SingleEdit:
    """One edit, ready to be sampled. before: its first reference; right: the true picture; (3, H, W) in 0-1."""

    number: int
    n_references: int
    conditioning: list[Any]
    noise: Tensor
    before: Tensor
    right: Tensor


@dataclass(frozen=True)
class Made:
    """Pictures (n, 3, H, W) of edits; of each, which steps were computed, how many of those kept references, and how
    far such references were off at most when they were computed anew (0: never)."""

    pictures: Tensor
    computed: list[Steps]
    n_kept: list[int]
    drifts: list[float]

    def part(self, which: Sequence[int]) -> Made:
        """Of some edits."""
        lists = (self.computed, self.n_kept, self.drifts)
        return Made(self.pictures[which], *([some[i] for i in which] for some in lists))


class SingleEdits:
    """About n held-out edits of these kinds, encoded once, their pictures decoded together.

    n_more: references of each that its prompt does not name, pictures of the edits before it.
    """

    def __init__(self, n: int, settings: Settings, kinds: Collection[str] = held_out.SHARES, n_more: int = 0):
        self.editor, self.settings, self.n_more = Editor(), settings, n_more
        self.edits: list[SingleEdit] = []
        for kind, edits in held_out.held_out(n).items():
            if kind in kinds:
                self.edits += self.prepared(edits)

    def prepared(self, edits: Sequence[Any]) -> list[SingleEdit]:
        """Edits of one kind, which have as many references each."""
        right, references = held_out.truth(edits, self.settings.size)
        references += [references[0].roll(1 + i, dims=0) for i in range(self.n_more)]
        latents = [self.editor.vae.encode(picture.movedim(1, -1)) for picture in references]
        ready = []
        for i, edit in enumerate(edits):
            number = len(self.edits) + i
            own = [latent[i : i + 1] for latent in latents]
            conditioning = self.editor.conditions([edit.prompt], own, self.settings.guidance)
            noise = torch.randn(own[0].shape, generator=torch.Generator().manual_seed(number))
            ready.append(SingleEdit(number, len(own), conditioning, noise, references[0][i], right[i]))
        return ready

    def make(self, choices: Any, edits: Sequence[SingleEdit]) -> Made:
        """The edits under the optimizer's choices."""
        optimized, latents = Optimized(self.editor.model, choices), []
        computed, n_kept, drifts = [], [], []
        for edit in edits:
            latent, kinds = optimized.sample(edit.noise, self.settings.steps, edit.conditioning)
            latents.append(latent)
            computed.append(tuple(step for step, kind in enumerate(kinds) if kind != "skipped"))
            n_kept.append(kinds.count("without references"))
            drifts.append(max(optimized.last.drifts, default=0.0) if optimized.last else 0.0)
        parts = torch.cat(latents).split(self.editor.at_once)
        return Made(torch.cat([self.editor.decode(part) for part in parts]), computed, n_kept, drifts)


def judged(edits: Sequence[SingleEdit], full: Tensor, pictures: Tensor) -> tuple[Tensor, float]:
    """SSIM (n,) of the edits' pictures to those with every step computed, and the share of edits that succeed."""
    from kontextkit.demo.training.judge import judge
    from kontextkit.engine.metrics.ssim import ssim

    before, right = (torch.stack([getattr(edit, what) for edit in edits]) for what in ("before", "right"))
    return ssim(full, pictures), judge(before, right, pictures).success.float().mean().item()


def typical(maps: Sequence[Steps], n_steps: int) -> tuple[Steps, int]:
    """The map chosen most often among those with the median number of steps, and how often it was chosen.

    Where several were chosen as often, the one that differs from all maps in the fewest steps.
    """
    sizes = sorted(map(len, maps))
    middle = sizes[len(sizes) // 2]
    shares = [sum(step in chosen for chosen in maps) / len(maps) for step in range(n_steps)]

    def nearness(chosen: Steps) -> tuple[int, float]:
        distance = sum(abs((step in chosen) - share) for step, share in enumerate(shares))
        return maps.count(chosen), -distance

    best = max({chosen for chosen in maps if len(chosen) == middle}, key=nearness)
    return best, maps.count(best)
