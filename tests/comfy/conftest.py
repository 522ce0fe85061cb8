"""The twins: one file of random weights in ComfyUI's own Flux and in ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle import Twins, make_twins


@pytest.fixture(scope="session")
def twins(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins(tmp_path_factory.mktemp("twins"), guidance=True)


@pytest.fixture(scope="session")
def twins_without_guidance(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins(tmp_path_factory.mktemp("twins"), guidance=False)
