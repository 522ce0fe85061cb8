"""The list of all nodes, for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import (
    compare_ssim,
    crop_and_stitch,
    lightning_lora,
    load_demo,
    load_model,
    load_text_encoders,
    mask_quality,
    optimize,
    train_lora,
)


class KontextExtension(ComfyExtension):
    """Registers the pack's nodes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of every file in this room."""
        files = (
            load_model,
            load_text_encoders,
            load_demo,
            lightning_lora,
            optimize,
            train_lora,
            compare_ssim,
            mask_quality,
            crop_and_stitch,
        )
        return [node for file in files for node in file.NODES]
