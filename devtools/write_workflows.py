"""Writes the bundled workflows from their descriptions in devtools/workflows, in both formats.

    COMFYUI_PATH=... python devtools/write_workflows.py

It starts ComfyUI to ask it for its nodes. Workflows that are not described there stay as they are.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import requests

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "workflows"


def main() -> None:
    """No arguments."""
    spec = importlib.util.spec_from_file_location(
        "kontextkit", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec
    sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
    from kontextkit.devtools.server import ComfyServer
    from kontextkit.devtools.workflows.edits import workflows
    from kontextkit.devtools.workflows.graph import as_lines

    with tempfile.TemporaryDirectory() as base, ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(base)) as server:
        infos = requests.get(f"{server.url}/object_info", timeout=60).json()
    for name, graph in workflows(infos).items():
        (WORKFLOWS / f"{name}.json").write_text(as_lines(graph.editor()), encoding="utf-8")
        (WORKFLOWS / "api" / f"{name}.json").write_text(as_lines(graph.api()), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
