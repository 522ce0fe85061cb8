"""Notes under a node."""

from __future__ import annotations

import sys

from comfy_execution.utils import get_executing_context


def show(note: str, node_id: str) -> None:
    """Under the node, for as long as the page is open; nowhere without a server."""
    module = sys.modules.get("server")  # ComfyUI's main imports it; without main there is no server to import it for
    server = getattr(getattr(module, "PromptServer", None), "instance", None)
    if server is not None:
        server.send_progress_text(note, node_id)


def show_here(note: str) -> None:
    """The same under the node that runs; nowhere outside a run."""
    if running := get_executing_context():
        show(note, running.node_id)
