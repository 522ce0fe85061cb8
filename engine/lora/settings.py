"""Alpha where no key has it: what diffusers and peft write into a file's header.

https://github.com/huggingface/diffusers/blob/main/src/diffusers/loaders/lora_base.py (LORA_ADAPTER_METADATA_KEY)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import LoraError

NOTES = ("lora_adapter_metadata", "adapter_config")
TRANSFORMER = "transformer."  # stands before the settings where a pipeline wrote them


class PeftSettings:
    """The settings in the notes of a header; none where there are no such notes.

    Raises LoraError where they are broken.
    """

    def __init__(self, file_name: str, metadata: Mapping[str, str]):
        self.file_name = file_name
        self.settings: dict[str, Any] = {}
        for note in NOTES:
            if note in metadata:
                self.settings = self._parse(note, metadata[note])

    def _parse(self, note: str, text: str) -> dict[str, Any]:
        try:
            settings = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LoraError(f"{self.file_name}: its note {note!r} is no JSON ({error}). Save it again.") from error
        if not isinstance(settings, dict):
            raise LoraError(f"{self.file_name}: its note {note!r} is no JSON object. Save it again.")
        own = {key.removeprefix(TRANSFORMER): v for key, v in settings.items() if key.startswith(TRANSFORMER)}
        return own or settings

    def scale_of(self, module: str) -> Callable[[int | None], float]:
        """rank -> scale of `module`; 1 where the settings have no alpha, their own rank where the rank is None."""

        def scale(rank: int | None) -> float:
            alpha = self._of(module, "alpha_pattern", self.settings.get("lora_alpha", self.settings.get("alpha")))
            if alpha is None:
                return 1.0
            height = rank or self._of(module, "rank_pattern", self.settings.get("r"))
            if not (_is_number(alpha) and _is_number(height) and height > 0):
                raise LoraError(
                    f"{self.file_name}: its header says alpha {alpha!r:.20} and rank {height!r:.20}, expected numbers. "
                    "Save the LoRA again."
                )
            return alpha / (math.sqrt(height) if self.settings.get("use_rslora") is True else height)

        return scale

    def _of(self, module: str, pattern: str, default: Any) -> Any:
        """The setting of a module, by its own name or the last parts of it; never as the regex that it could be."""
        table = self.settings.get(pattern)
        if not isinstance(table, dict):
            return default
        return next((v for name, v in table.items() if f".{module}".endswith(f".{name.lstrip('^')}")), default)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e9
