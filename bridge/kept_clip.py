"""ComfyUI's CLIP that remembers prompts, since ComfyUI's own cache keeps the last one only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import comfy.sd

N_PROMPTS = 32  # 8 MB each


class KeptCLIP(comfy.sd.CLIP):
    """What it encoded is kept as long as it lives. Its clones (a LoRA, another layer) are plain CLIPs."""

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], *rest: Any, **more: Any) -> list[list[Any]]:
        """ComfyUI's, or what it gave before for the very same tokens; embeddings among them are encoded anew."""
        key = repr((tokens, rest, more, self.layer_idx, self.patcher.patches_uuid))
        if "tensor(" in key or self.patcher.forced_hooks is not None:
            conditioning: list[list[Any]] = super().encode_from_tokens_scheduled(tokens, *rest, **more)
            return conditioning
        kept: OrderedDict[str, list[list[Any]]] = self.__dict__.setdefault("_prompts", OrderedDict())
        if key not in kept:
            kept[key] = super().encode_from_tokens_scheduled(tokens, *rest, **more)
        kept.move_to_end(key)
        while len(kept) > N_PROMPTS:
            kept.popitem(last=False)
        return [[context, dict(values)] for context, values in kept[key]]
