"""Writes what follows from other files: the bundled workflows (devtools/workflows) and the English locale.

    COMFYUI_PATH=... python devtools/generate.py

It starts ComfyUI to ask it for its nodes. Workflows that are not described there stay as they are.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def generated(infos: Mapping[str, Any]) -> dict[str, str]:
    """{path in the checkout: text}. infos: of ComfyUI's /object_info. With the pack imported as `kontextkit`."""
    from kontextkit.devtools.locale import node_defs
    from kontextkit.devtools.workflows.edits import workflows
    from kontextkit.devtools.workflows.graph import as_lines

    texts = {"locales/en/nodeDefs.json": as_lines(node_defs(infos))}
    for name, graph in workflows(infos).items():
        texts[f"workflows/{name}.json"] = as_lines(graph.editor())
        texts[f"workflows/api/{name}.json"] = as_lines(graph.api())
    return texts


def main() -> None:
    """No arguments."""
    rooms = [str(ROOT)]
    spec = importlib.util.spec_from_file_location("kontextkit", ROOT / "__init__.py", submodule_search_locations=rooms)
    assert spec
    sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
    import requests
    from kontextkit.devtools.server import ComfyServer

    with tempfile.TemporaryDirectory() as base, ComfyServer(Path(os.environ["COMFYUI_PATH"]), Path(base)) as server:
        infos = json.loads(requests.get(f"{server.url}/object_info", timeout=60).text)
    for path, text in generated(infos).items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
