"""Opening files: the same tensors as gguf-py and safetensors, and clear words for anything else."""

import gguf
import numpy as np
import pytest
import torch
from kontextkit.engine.checkpoint import open_checkpoint
from kontextkit.engine.errors import CheckpointError
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
    "cut.safetensors": (b"\xff\0\0\0\0\0\0\0{", "broken safetensors file .* download the file again"),
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


def test_a_file_that_is_gone_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.gguf: the file cannot be read .* press R"):
        open_checkpoint(tmp_path / "gone.gguf")
