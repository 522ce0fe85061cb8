"""Random FLUX weights under BFL's names."""

import pytest
import torch
from flux_files import write_gguf


@pytest.fixture
def bfl_tensors():
    """{name: float32 tensor} of a tiny random FLUX transformer."""
    from kontextkit.devtools.flux_shapes import bfl_shapes

    generator = torch.Generator().manual_seed(0)
    shapes = bfl_shapes(hidden=128, text=96, pooled=64, depth=2, single=3)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


@pytest.fixture
def gguf_file(tmp_path, bfl_tensors):
    """qtype -> a GGUF file of `bfl_tensors`."""
    return lambda qtype: write_gguf(tmp_path / f"{qtype}.gguf", bfl_tensors, qtype)
