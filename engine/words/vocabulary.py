"""Prompts to word numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

N_POSITIONS = 40  # words a prompt may have; every encoded prompt has this length
PADDING = 0

_WORD = re.compile(r"[^\W_]+")
_SAME = {  # what people write -> what the model was taught
    "colour": "color",
    "grey": "gray",
    "center": "middle",
    "centre": "middle",
    "upper": "top",
    "lower": "bottom",
    "big": "large",
    "little": "small",
    "picture": "image",
    "photo": "image",
    "delete": "remove",
    "erase": "remove",
    "place": "put",
    "an": "a",
    "stripes": "striped",
    "stripy": "striped",
    "dots": "dotted",
    "spotted": "dotted",
    "checked": "checkered",
    "crescent": "moon",
    "rhombus": "diamond",
    "violet": "purple",
}


@dataclass(frozen=True)
class Words:
    """A prompt's known words as numbers, and what the model cannot read: unknown words, words too many."""

    ids: list[int]
    unknown: list[str]
    beyond: list[str]


class Vocabulary:
    """Numbers from 1 for words; 0 is padding."""

    def __init__(self, words: Iterable[str]):
        self.words = tuple(words)
        self._ids = {word: number for number, word in enumerate(self.words, 1)}

    def read(self, text: str) -> Words:
        """The words of a prompt in any case and with any punctuation; common synonyms are understood."""
        found = [_SAME.get(word, word) for word in _WORD.findall(text.lower())]
        known = [word for word in found if word in self._ids]
        unknown = list(dict.fromkeys(word for word in found if word not in self._ids))
        return Words([self._ids[word] for word in known[:N_POSITIONS]], unknown, known[N_POSITIONS:])
