"""The list of all nodes, for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import lightning_lora, load_demo, load_model, load_text_encoders, optimize, quantize, train_lora


class KontextExtension(ComfyExtension):
    """Registers the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of every file in this room."""
        files = (load_model, load_text_encoders, load_demo, lightning_lora, optimize, train_lora, quantize)
        return [node for file in files for node in file.NODES]
