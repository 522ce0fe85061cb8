"""Random FLUX weights under BFL's names."""

import pytest
import torch
from flux_files import write_gguf
from safetensors.torch import save_file


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


@pytest.fixture
def build(tmp_path, bfl_tensors):
    """qtype -> a transformer over a file of it."""
    from kontextkit.engine.checkpoint import open_checkpoint
    from kontextkit.engine.flux.build import build_transformer
    from kontextkit.engine.flux.weights import read_weights

    def build(qtype):
        path = tmp_path / f"{qtype}.safetensors"
        if qtype == "F32":
            save_file(bfl_tensors, path)
        else:
            path = write_gguf(tmp_path / f"{qtype}.gguf", bfl_tensors, qtype)
        checkpoint = open_checkpoint(path)
        config, weights = read_weights(checkpoint)
        return build_transformer(config, weights, checkpoint.file_name)

    return build
