"""Random FLUX weights under BFL's names."""

import pytest
import torch


@pytest.fixture
def bfl_tensors():
    """{name: float32 tensor} of a tiny random FLUX transformer."""
    from kontextkit.devtools.stand_ins import bfl_shapes

    generator = torch.Generator().manual_seed(0)
    shapes = bfl_shapes(hidden=128, text=96, pooled=64, depth=2, single=3)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


def write_gguf(path, tensors, qtype):
    """As gguf-py writes it: matrices in `qtype`, the rest in F32."""
    import gguf

    writer = gguf.GGUFWriter(path, "flux")
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[qtype if tensor.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def gguf_file(tmp_path, bfl_tensors):
    """qtype -> a GGUF file of `bfl_tensors`."""
    return lambda qtype: write_gguf(tmp_path / f"{qtype}.gguf", bfl_tensors, qtype)
