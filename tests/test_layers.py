"""The rooms of the house and what they may import, read from the sources."""

import ast
import importlib.util
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "node_helpers", "server"}
MAY_IMPORT = {
    "engine": {"engine"},
    "bridge": {"bridge", "engine"},
    "nodes": {"nodes", "bridge", "engine"},
    "demo": {"demo", "engine"},
    "devtools": {"devtools", "engine"},
}
INSIDE_ENGINE = {
    "errors": set(),
    "memory": set(),
    "pace": set(),
    "whole_file": set(),
    "gguf": {"errors"},
    "quant": {"errors", "memory"},
    "checkpoint": {"errors", "gguf", "quant"},
    "flux": {"errors", "checkpoint", "quant"},
    "text_encoders": {"errors", "checkpoint", "quant"},
    "lora": {"errors", "checkpoint", "flux", "quant"},
    "words": set(),
    "metrics": {"flux"},
    "inpaint": {"flux"},
    "attention": {"errors", "quant"},
    "references": {"errors", "flux"},
    "cache": {"quant"},
    "tiers": {"cache", "references"},
    "training": {"errors", "whole_file", "flux", "lora", "quant"},
    "lab": set(),
    "quantizer": {"errors", "pace", "checkpoint", "flux", "gguf", "lora", "quant"},
}
SOURCES = [path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> list[tuple[str, ...]]:
    """Absolute module paths that a file imports, anywhere in it; our own begin with a room."""
    package = path.relative_to(ROOT).parts[:-1]
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            found += [base] if node.module else [(*base, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = path.relative_to(ROOT).parts[0]
    for module in imports(path):
        if module[0] in MAY_IMPORT:
            assert module[0] in MAY_IMPORT[room], f"{room} may not import {'.'.join(module)}"
        if room in ("engine", "demo", "devtools"):
            assert module[0] not in COMFYUI, f"{room} may not import ComfyUI ({module[0]})"


@pytest.mark.parametrize("path", [p for p in SOURCES if p.is_relative_to(ROOT / "engine")], ids=lambda p: p.stem)
def test_rooms_of_the_engine_know_only_what_stands_below_them(path):
    parts = path.relative_to(ROOT / "engine").with_suffix("").parts
    room = parts[0]
    if room == "__init__":
        return
    for module in imports(path):
        if module[0] == "engine" and module[1] != room:
            assert module[1] in INSIDE_ENGINE[room], f"engine.{room} may not import {'.'.join(module)}"


def test_no_file_is_longer_than_300_lines():
    files = subprocess.run(
        ["git", "ls-files", "*.py", "*.js", "*.json", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    long = {name: n for name in files.stdout.split() if (n := (ROOT / name).read_text().count("\n")) > 300}
    assert long == {}


def test_every_node_file_lists_its_nodes_and_every_node_has_a_help_page():
    ids = []
    for path in (ROOT / "nodes").glob("*.py"):
        if path.name not in ("__init__.py", "extension.py"):
            assert re.search(r"^NODES = \[", path.read_text(), re.MULTILINE), path.name
            ids += re.findall(r'node_id="(\w+)"', path.read_text())
    assert ids
    assert all((ROOT / "js" / "docs" / f"{node_id}.md").exists() for node_id in ids)


def test_importing_the_pack_loads_nothing_heavy(comfyui):
    """In a process of its own, where ComfyUI is already loaded, as it is for a user."""
    script = textwrap.dedent(f"""
        import asyncio, importlib.util, sys
        sys.path.insert(0, {str(comfyui)!r})
        import comfy.cli_args
        comfy.cli_args.args.cpu = True
        import comfy.sd, comfy.samplers, comfy_api.latest, folder_paths
        before = set(sys.modules)
        root = {str(ROOT)!r}
        spec = importlib.util.spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
        pack = sys.modules["pack"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(pack)
        nodes = asyncio.run(asyncio.run(pack.comfy_entrypoint()).get_node_list())
        print([node.GET_SCHEMA().node_id for node in nodes])
        heavy = ("diffusers", "torch._dynamo", "torch._inductor", "peft", "transformers", "para_attn")
        print([name for name in set(sys.modules) - before if name.startswith(heavy)])
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    ids, heavy = result.stdout.strip().splitlines()[-2:]
    assert "KontextLoadModel" in ids
    assert heavy == "[]"


def test_what_scripts_import_of_the_pack_is_there(comfyui):
    """Benchmarks run by hand only: a name that moved would be missed on the lent card."""
    for path in [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "devtools").rglob("*.py"), *ROOT.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kontextkit") and not node.level:
                module = importlib.import_module(node.module)
                for name in (alias.name for alias in node.names):
                    there = hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}")
                    assert there, f"{path.name}:{node.lineno}: {node.module} has no {name}"
