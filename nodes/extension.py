"""The list of all nodes, for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import lightning_lora, load_demo, load_model, load_text_encoders


class KontextExtension(ComfyExtension):
    """Registers the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of every file in this room."""
        return [*load_model.NODES, *load_text_encoders.NODES, *load_demo.NODES, *lightning_lora.NODES]
