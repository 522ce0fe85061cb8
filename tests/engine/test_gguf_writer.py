"""The writer's layout against gguf-py and the published files."""

import gguf
import pytest
from kontextkit.devtools.flux_shapes import bfl_shapes
from kontextkit.engine.gguf import read_header
from kontextkit.engine.gguf.writer import lay_out
from kontextkit.engine.quantizer.mixes import MIXES

FULL = {"hidden": 3072, "text": 4096, "pooled": 768, "depth": 19, "single": 38}  # FLUX.1
PUBLISHED = {"Q4_K_M": 6_931_817_760, "Q8_0": 12_714_452_256}  # bytes of FLUX.1 Kontext [dev] files


def full_size(qtype):
    mix = MIXES[qtype]
    notes = {
        "general.architecture": "flux",
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": mix.file_type,
    }
    shapes = bfl_shapes(**FULL)
    return lay_out(notes, [(name, mix.qtype(name, shape), shape) for name, shape in shapes.items()])


@pytest.mark.parametrize("qtype", PUBLISHED)
def test_a_full_size_file_has_the_bytes_of_the_published_one(qtype):
    assert full_size(qtype).n_bytes == PUBLISHED[qtype]


def test_304_matrices_are_quantized_and_38_of_them_one_level_up():
    kinds = [tensor.qtype for tensor in full_size("Q4_K_M").tensors]
    assert {kind: kinds.count(kind) for kind in kinds} == {"F32": 466, "Q4_K": 266, "Q5_K": 38, "BF16": 10}


@pytest.mark.parametrize("qtype", MIXES)
def test_the_number_of_a_mix_is_llama_cpp_s(qtype):
    names = {"F16": "MOSTLY_F16", "BF16": "MOSTLY_BF16"}
    assert MIXES[qtype].file_type == gguf.LlamaFileType[names.get(qtype, f"MOSTLY_{qtype}")]


def test_gguf_py_and_our_own_parser_read_the_same_layout(tmp_path):
    tensors = [("a.weight", "Q4_K", (3, 256)), ("a.bias", "F32", (3,)), ("b.weight", "BF16", (5, 7))]
    layout = lay_out({"general.architecture": "flux", "general.file_type": 15}, tensors)
    path = tmp_path / "a.gguf"
    path.write_bytes(layout.head.ljust(layout.n_bytes, b"\0"))
    header = read_header(path)
    assert header.tensors == layout.tensors
    assert header.metadata == {"general.architecture": "flux", "general.file_type": 15}
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.architecture"].contents() == "flux"
    assert reader.fields["general.file_type"].contents() == 15
    found = [(t.name, t.tensor_type.name, tuple(map(int, t.shape[::-1])), t.data_offset) for t in reader.tensors]
    assert found == [(t.name, t.qtype, t.shape, t.offset) for t in layout.tensors]


def test_rows_that_are_not_whole_blocks_are_refused():
    with pytest.raises(ValueError, match=r"'a' has 100 columns, Q4_0 needs a multiple of 32"):
        lay_out({}, [("a", "Q4_0", (2, 100))])
