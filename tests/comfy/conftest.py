"""The twins: one file of random weights in ComfyUI's own Flux and in ours; and how ComfyUI runs nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from oracle import Twins, make_twins


@pytest.fixture(scope="session")
def twins(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins(tmp_path_factory.mktemp("twins"), guidance=True)


@pytest.fixture(scope="session")
def twins_without_guidance(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return make_twins(tmp_path_factory.mktemp("twins"), guidance=False)


@pytest.fixture
def as_in_a_running_prompt() -> Iterator[None]:
    with torch.inference_mode():
        yield
