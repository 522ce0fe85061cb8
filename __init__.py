"""KontextKit: FLUX.1 Kontext image editing in ComfyUI, small, fast and measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./js"
__version__ = "0.1.0"


async def comfy_entrypoint() -> ComfyExtension:
    """ComfyUI's door to the pack; the first line that may import ComfyUI."""
    from .nodes.extension import KontextExtension

    return KontextExtension()
