"""Shared by all tests: the pack under the name `kontextkit`, ComfyUI in this process, one running server."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")  # looking for vector instructions takes 20 s a process
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run on the CPU, slowly; Triton reads it when imported
COMFYUI = Path(os.environ["COMFYUI_PATH"]) if "COMFYUI_PATH" in os.environ else None


def load_pack() -> ModuleType:
    """The pack as ComfyUI loads it: by path, never by putting the root on sys.path (nodes/ shadows nodes.py)."""
    spec = importlib.util.spec_from_file_location(
        "kontextkit", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec
    assert spec.loader
    pack = importlib.util.module_from_spec(spec)
    sys.modules["kontextkit"] = pack
    spec.loader.exec_module(pack)
    return pack


load_pack()


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """ComfyUI's folder, importable in this process, on the CPU unless there is a card."""
    if COMFYUI is None:
        pytest.fail("COMFYUI_PATH is not set; run the tests through `python3 dev.py test`")
    if str(COMFYUI) not in sys.path:
        sys.path.insert(0, str(COMFYUI))
        import comfy.cli_args

        comfy.cli_args.args.cpu = not torch.cuda.is_available()
    return COMFYUI


@pytest.fixture(scope="session")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A real ComfyUI server with the pack and the stand-in files, shared by all tests."""
    from kontextkit.devtools.demo import draw_example
    from kontextkit.devtools.server import ComfyServer
    from kontextkit.devtools.stand_ins import write_stand_ins

    base = tmp_path_factory.mktemp("base")
    write_stand_ins(base / "models")
    draw_example(base / "input" / "example.png")
    with ComfyServer(comfyui, base) as running:
        yield running


@pytest.fixture
def models(server: Any) -> Path:
    """The server's folder of diffusion models."""
    return server.base / "models" / "diffusion_models"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no card."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA card"))
