"""The list of all nodes, for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from ..bridge import routes
from . import (
    encode_references,
    lightning_lora,
    load_demo,
    load_model,
    load_text_encoders,
    optimize,
    reference,
    restore_size,
    tier,
    train_lora,
)


class KontextExtension(ComfyExtension):
    """Registers the pack's nodes."""

    async def on_load(self) -> None:
        """The routes that the sidebar asks."""
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of every file in this room."""
        files = (
            load_model,
            load_text_encoders,
            load_demo,
            reference,
            encode_references,
            restore_size,
            lightning_lora,
            optimize,
            tier,
            train_lora,
        )
        return [node for file in files for node in file.NODES]
