"""A long job on its node: the bar, the time that is left in words, and Cancel."""

from __future__ import annotations

import time
from typing import Any

import comfy.model_management
import comfy.utils

from ..engine.pace import time_left
from .notes import show_here

QUIET, EVERY = 2.0, 1.0  # seconds before the first words, and between them


class Progress:
    """words: what is being done; may change while it goes on."""

    def __init__(self, total: float, words: str):
        self.total, self.words = max(1, total), words
        self.bar = comfy.utils.ProgressBar(self.total)
        self.begin, self.first = 0.0, -1.0  # when it was first heard of, and what was done then (by an earlier run)
        self.last = 0.0  # seconds after that, when words were shown last

    def at(self, done: float, preview: Any = None) -> None:
        """So much of `total` is done. Raises ComfyUI's InterruptProcessingException after a Cancel."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar.update_absolute(done, preview=preview)
        if self.first < 0:
            self.begin, self.first = time.perf_counter(), done
        took = time.perf_counter() - self.begin
        if done > self.first and took > QUIET and self.last + EVERY < took:
            self.last = took
            left = took / (done - self.first) * (self.total - done)
            show_here(f"{self.words}\n{time_left(left)}")
