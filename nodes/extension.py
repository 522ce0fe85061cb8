"""The list of all nodes, for ComfyUI."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from comfy_api.latest import ComfyExtension, io

from ..bridge import routes

FILES = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "extension"))


class KontextExtension(ComfyExtension):
    """Registers the pack's nodes."""

    async def on_load(self) -> None:
        """The routes that the sidebar asks."""
        routes.register()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of every file in this room."""
        return [node for name in FILES for node in import_module(f".{name}", __package__).NODES]
