"""What the front-end asks the server for: this machine, and the last runs. Reading alone; names, never paths."""

from __future__ import annotations

import sys
from typing import Any

from . import machine, runs


def register() -> None:
    """Adds the routes to ComfyUI's server before it starts; nothing without a server."""
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    from aiohttp import web  # where there is a server it is loaded

    @server.routes.get("/kontextkit/machine")
    async def get_machine(_: Any) -> Any:
        return web.json_response(machine.facts())

    @server.routes.get("/kontextkit/runs")
    async def get_runs(_: Any) -> Any:
        return web.json_response(runs.last())
