"""Edits drawn and encoded once, from which batches are taken."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ...engine.words.vocabulary import N_POSITIONS, PADDING, Vocabulary
from .autoencoder import Autoencoder
from .draw import draw
from .edits import KINDS, random_edit
from .recipe import Size

SHARES = {0: 0.06, 1: 0.52, 2: 0.18, 3: 0.24}  # of edits, and of batches, with so many references
WEIGHTS = {"texture": 2}  # of a kind among those of as many references; 1 by default: what is hard comes more often
_KINDS = [kind for kinds in KINDS.values() for kind in kinds]


@dataclass(frozen=True)
class Group:
    """Edits of one number of references: latents (N, 1 + references, 16, h, w), the result first; ids (N, L).

    chances: (N,) how often each is drawn, beside the others; None: all alike.
    """

    latents: Tensor
    ids: Tensor
    chances: Tensor | None = None

    def n_edits(self, n_tokens: int) -> int:
        """Of a batch of about so many tokens, text and all pictures counted."""
        return max(1, n_tokens // (self.latents[0, :, 0].numel() // 4 + self.ids.shape[1]))

    def choose(self, n: int, generator: torch.Generator) -> Tensor:
        """The places of n edits, drawn with replacement."""
        if self.chances is None:
            return torch.randint(len(self.ids), (n,), generator=generator, device=self.ids.device)
        return torch.multinomial(self.chances, n, replacement=True, generator=generator)


def build_pool(
    n: int, size: Size, autoencoder: Autoencoder, vocabulary: Vocabulary, rng: Random, device: torch.device
) -> dict[int, Group]:
    """About n edits of pictures of a size in pixels, by number of references."""
    return {
        n_references: _group(max(1, round(n * share)), n_references, size, autoencoder, vocabulary, rng, device)
        for n_references, share in SHARES.items()
    }


@torch.no_grad()
def _group(
    n: int,
    n_references: int,
    size: Size,
    autoencoder: Autoencoder,
    vocabulary: Vocabulary,
    rng: Random,
    device: torch.device,
) -> Group:
    height, width = size
    side = min(size)
    kinds = KINDS[n_references]
    drawn = rng.choices(kinds, [WEIGHTS.get(kind, 1) for kind in kinds], k=n)
    edits = [random_edit(kind, rng, width / side, height / side) for kind in drawn]
    at_once = max(1, 64 * 256 * 256 // (height * width * (1 + n_references)))
    latents = []
    for i in range(0, n, at_once):
        part = edits[i : i + at_once]
        scenes = [scene for edit in part for scene in (edit.result, *edit.references)]
        pictures = (draw(scenes, height, width, device) * 255).round() / 255
        with torch.autocast(device.type, torch.bfloat16):
            encoded = autoencoder.encode(pictures.contiguous(memory_format=torch.channels_last))
        latents.append(encoded.bfloat16().unflatten(0, (len(part), 1 + n_references)))
    ids = torch.tensor([word_ids(edit.prompt, vocabulary) for edit in edits], device=device)
    return Group(torch.cat(latents), ids)


def word_ids(prompt: str, vocabulary: Vocabulary) -> list[int]:
    """N_POSITIONS ids. Raises KeyError for a word the vocabulary lacks: a prompt of ours has none."""
    words = vocabulary.read(prompt)
    if words.unknown or words.beyond:
        raise KeyError(f"{prompt!r}: {words.unknown + words.beyond} cannot be read")
    return words.ids + [PADDING] * (N_POSITIONS - len(words.ids))


def learn_words(rng: Random) -> Vocabulary:
    """Every word of the prompts that `edits` can write."""
    prompts = [random_edit(kind, rng).prompt for kind in _KINDS for _ in range(1500)]
    return Vocabulary(sorted({word for prompt in prompts for word in prompt.split()}))
