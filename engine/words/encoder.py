"""Word numbers to what FLUX reads: a context of one state a word, and one pooled state."""

from __future__ import annotations

from torch import Tensor, nn

from .vocabulary import N_POSITIONS, PADDING


class WordEncoder(nn.Module):
    """A learned state for every word and every position; FLUX's own text stream does the rest."""

    def __init__(self, n_words: int, width: int):
        super().__init__()
        self.words = nn.Embedding(n_words + 1, width)
        self.positions = nn.Embedding(N_POSITIONS, width)

    def forward(self, ids: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """ids (B, N_POSITIONS), padded with 0 -> context (B, N_POSITIONS, D) and pooled (B, D).

        weights: (B, N_POSITIONS), how strongly each word counts, 1 by default. A prompt of no words has pooled zeros.
        """
        states = self.words(ids)
        if weights is not None:
            states = states * weights.unsqueeze(-1)
        is_word = (ids != PADDING).unsqueeze(-1).to(states.dtype)
        pooled = (states * is_word).sum(dim=1) / is_word.sum(dim=1).clamp(min=1)
        return states + self.positions.weight, pooled
