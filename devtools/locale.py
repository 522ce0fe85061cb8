"""The English locale of the nodes, from their schemas, for translators and for ComfyUI's own use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]
PACK = "custom_nodes.KontextKit"
OF_THIS_MACHINE = "Folders searched"  # such a tooltip names folders of a machine, so it stays the schema's
SPECIAL = "{}@|$"  # in the front-end's messages


def node_defs(infos: Mapping[str, Json]) -> Json:
    """What locales/en/nodeDefs.json holds. infos: of ComfyUI's /object_info."""
    return {name: _node(info) for name, info in sorted(infos.items()) if info["python_module"] == PACK}


def _node(info: Json) -> Json:
    inputs = {
        name: _named(name, (more[0] if more else {}).get("tooltip"))
        for part in ("required", "optional")
        for name, (_, *more) in info["input"].get(part, {}).items()
    }
    outputs = {
        str(i): _named(name, tooltip)
        for i, (name, tooltip) in enumerate(zip(info["output_name"], info["output_tooltips"], strict=True))
    }
    texts = {"display_name": _escaped(info["display_name"]), "description": _escaped(info["description"])}
    return texts | {"inputs": inputs, "outputs": outputs}


def _named(name: str, tooltip: str | None) -> Json:
    named = {"name": _escaped(name)}
    if tooltip and OF_THIS_MACHINE not in tooltip:
        named["tooltip"] = _escaped(tooltip)
    return named


def _escaped(text: str) -> str:
    return "".join(f"{{'{each}'}}" if each in SPECIAL else each for each in text)
