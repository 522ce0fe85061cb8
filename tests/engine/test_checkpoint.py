"""Opening files: the same tensors as gguf-py and safetensors, and clear words for anything else."""

import json
import time
import tracemalloc

import gguf
import numpy as np
import pytest
import torch
from flux_files import write_packed
from kontextkit.engine.checkpoint import check_scales, open_checkpoint
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.quant import block_type
from kontextkit.engine.quant.blocks import block_types
from packed_blocks import random_blocks
from safetensors.torch import save_file


@pytest.mark.parametrize("qtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_0"])
def test_gguf_tensors_are_bit_for_bit_what_gguf_py_decodes(qtype, gguf_file):
    path = gguf_file(qtype)
    checkpoint = open_checkpoint(path)
    theirs = gguf.GGUFReader(path).tensors
    assert list(checkpoint.tensors) == [t.name for t in theirs]
    for tensor in theirs:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        ours = checkpoint.tensors[tensor.name].decode(torch.float32)
        assert tuple(ours.shape) == expected.shape
        assert np.array_equal(ours.numpy().view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("qtype", block_types())
def test_every_block_type_is_read_from_a_file(qtype, tmp_path):
    packed = random_blocks(qtype, 6 * 512 // block_type(qtype).block_size, seed=2).reshape(6, -1)
    path = write_packed(tmp_path / "packed.gguf", {"a": (packed, qtype), "vector": (packed[0], qtype)})
    tensors = open_checkpoint(path).tensors
    check_scales(path.name, tensors, lambda n_bytes: None)
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType[qtype])
    assert np.array_equal(tensors["a"].decode().numpy(), expected)
    assert np.array_equal(tensors["vector"].decode().numpy(), expected[0])


@pytest.mark.parametrize("qtype", block_types())
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_no_number_is_named(qtype, scale, tmp_path):
    packed = random_blocks(qtype, 40, seed=2)
    packed[17, block_type(qtype).halves[-1] :][:2] = np.array([scale], np.float16).view(np.uint8)
    path = write_packed(tmp_path / "bad.gguf", {"fine": (packed[:17], qtype), "broken": (packed, qtype)})
    told = []
    with pytest.raises(CheckpointError, match=rf"bad\.gguf: block 17 of tensor 'broken' has the scale {scale}"):
        check_scales(path.name, open_checkpoint(path).tensors, told.append)
    assert told == [packed[:17].nbytes]
    path = write_packed(tmp_path / "vector.gguf", {"broken": (packed.reshape(-1), qtype)})
    with pytest.raises(CheckpointError, match="block 17 of tensor 'broken'"):
        open_checkpoint(path)


def test_a_gguf_file_is_mapped_and_not_read(gguf_file):
    path = gguf_file("F16")
    storages = {t.data.untyped_storage().data_ptr() for t in open_checkpoint(path).tensors.values()}
    assert len(storages) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_tensors_are_what_was_saved(dtype, tmp_path, bfl_tensors):
    path = tmp_path / "model.safetensors"
    save_file({name: t.to(dtype) for name, t in bfl_tensors.items()}, path)
    tensors = open_checkpoint(path).tensors
    assert tensors.keys() == bfl_tensors.keys()
    assert all(torch.equal(tensors[name].data, t.to(dtype)) for name, t in bfl_tensors.items())


@pytest.mark.parametrize("spelling", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_fp8_weights_are_multiplied_by_their_scale(spelling, dtype, tmp_path):
    weight, scale = torch.randn(8, 16).to(dtype), torch.tensor(0.037)
    path = tmp_path / "fp8.safetensors"
    extras = {"scaled_fp8": torch.zeros(2).to(dtype), "a.scale_input": torch.ones(()), "a.input_scale": torch.ones(())}
    extras["a.comfy_quant"] = torch.zeros(30, dtype=torch.uint8)
    save_file({"a.weight": weight, f"a.{spelling}": scale, "a.bias": torch.ones(8)} | extras, path)
    tensors = open_checkpoint(path).tensors
    assert set(tensors) == {"a.bias", "a.weight"}
    assert torch.equal(tensors["a.weight"].decode(torch.float32), weight.float() * scale)


def test_a_scale_for_every_row_is_refused(tmp_path):
    path = tmp_path / "rows.safetensors"
    save_file({"a.weight": torch.ones(8, 16).to(torch.float8_e4m3fn), "a.scale_weight": torch.ones(8)}, path)
    with pytest.raises(CheckpointError, match=r"'a\.scale_weight' holds 8 scales"):
        open_checkpoint(path)


BAD = {
    "empty.gguf": (b"", "the file is empty"),
    "archive.gguf": (b"PK\x03\x04" + bytes(100), "zip archive"),
    "page.gguf": (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "web page"),
    "pointer.gguf": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n", "git-lfs pointer"),
    "noise.gguf": (bytes(range(7, 250)), "neither GGUF nor safetensors"),
    "swapped.safetensors": (b"GGUF" + bytes(100), r"content is GGUF .* Rename it to swapped\.gguf"),
    "swapped.gguf": (b"\x02\0\0\0\0\0\0\0{}", r"content is safetensors .* Rename it to swapped\.safetensors"),
    "cut.safetensors": (b"\xff\0\0\0\0\0\0\0{", "broken safetensors header: .* download the file again"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_a_model_is_named(name, tmp_path):
    content, words = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize("length", [640, 35615, 66176])
def test_a_header_whose_length_looks_like_another_format_is_read(length, tmp_path):
    """640 and 66176 begin with a pickle's bytes, 35615 with gzip's."""
    table = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + table.ljust(length) + bytes(4))
    assert list(open_checkpoint(path).tensors) == ["a"]


def table(**entries):
    """A safetensors file of these entries and 64 bytes of data."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(64)


def place(dtype="F32", shape=(16,), begin=0, stop=64):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}


TWICE = b'{"a":{"dtype":"U8","shape":[64],"data_offsets":[0,64]},"a":{"dtype":"U8","shape":[64],"data_offsets":[0,64]}}'
HOSTILE = {
    "a length past the end": (b"\xff" * 8 + b"{", "bytes long"),
    "no JSON": ((8).to_bytes(8, "little") + b"{" + bytes(80), "Expecting property name"),
    "deep nesting": (
        (1 << 20).to_bytes(8, "little") + b'{"a":' * (1 << 15) + bytes(1 << 20),
        "some 32766 tensors|ecursion|Expecting",
    ),
    "millions of tensors": ((3 << 21).to_bytes(8, "little") + b"{" + b"{}," * (1 << 21) + bytes(64), "2097151 tensors"),
    "millions of numbers": ((1 << 23).to_bytes(8, "little") + b"{" + b"1," * (1 << 22), "419430. entries"),
    "a name twice": (len(TWICE).to_bytes(8, "little") + TWICE + bytes(64), "a name stands twice"),
    "no shape": (table(a={"dtype": "F32", "data_offsets": [0, 64]}), "'a' lacks dtype, shape or data_offsets"),
    "an unknown type": (table(a=place("X9")), "'a' is of the unknown type 'X9'"),
    "a long name": (table(**{"a" * 1025: place()}), "has a name of 1025 letters, 1024 are allowed"),
    "a negative side": (table(a=place(shape=(-4, -4))), r"'a' has the shape \[-4, -4\]"),
    "a product that overflows": (table(a=place(shape=(1 << 40, 1 << 40))), "'a' of .* bytes lies at 0 to 64"),
    "too few bytes": (table(a=place(shape=(17,))), "'a' of 68 bytes lies at 0 to 64"),
    "a hole": (table(a=place(shape=(8,), begin=32)), "'a' begins at byte 32, the one before ends at 0"),
    "an overlap": (table(a=place(), b=place()), "'b' begins at byte 0, the one before ends at 64"),
    "data left over": (table(a=place(shape=(8,), stop=32)), "the tensors end at byte 32, the file has 64"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_safetensors_header_is_refused_at_once(case, tmp_path):
    content, words = HOSTILE[case]
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(content)
    begin = time.perf_counter()
    with pytest.raises(CheckpointError, match=f"hostile.safetensors: broken safetensors header: .*({words})"):
        open_checkpoint(path)
    assert time.perf_counter() - begin < 2


def test_the_widest_safetensors_header_costs_little(tmp_path):
    """As many distinct numbers as are allowed: under 2 s and 200 MB, then refused for what they say."""
    path = tmp_path / "wide.safetensors"
    numbers = ",".join(map(str, range(1000, 1000 + (1 << 21) - 8)))
    text = f'{{"a":{{"dtype":"U8","shape":[{numbers}],"data_offsets":[0,1]}}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(1))
    begin = time.thread_time()
    with pytest.raises(CheckpointError, match="'a' has the shape"):
        open_checkpoint(path)
    assert time.thread_time() - begin < 2
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="'a' has the shape"):
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.gguf: the file cannot be read .* press R"):
        open_checkpoint(tmp_path / "gone.gguf")
