"""Damaged and forged files: whatever the bytes, an answer or a CheckpointError, soon. $FUZZ_EXAMPLES sets how many."""

import os
import struct
import time

import pytest
import torch
from flux_files import write_packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kontextkit.engine.checkpoint import check_scales, open_checkpoint
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.flux.weights import read_weights
from kontextkit.engine.lora.read import read_lora
from kontextkit.engine.quant import block_type
from kontextkit.engine.quant.blocks import block_types
from kontextkit.engine.quant.packed import supported_types
from kontextkit.engine.text_encoders import read_clip_l, read_t5xxl
from packed_blocks import random_blocks
from safetensors.torch import save_file

NUMBERS = (0, 1, 2, 8, 31, 32, 127, 128, 255, 1 << 15, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)
WORDS = (
    b"GGUF",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b",",
    b"-1",
    b"1e9",
    b"\\u0000",
    b"..",
    b"null",
    b"F64",
    b"__metadata__",
)
PIECES = st.one_of(
    st.binary(min_size=1, max_size=9),
    st.sampled_from(WORDS),
    st.sampled_from(NUMBERS).map(lambda n: struct.pack("<Q", n)),
    st.sampled_from(NUMBERS).map(lambda n: struct.pack("<I", n & 0xFFFFFFFF)),
)
EDITS = st.lists(
    st.tuples(st.sampled_from(("write", "insert", "delete", "cut", "repeat")), st.integers(0, 4095), PIECES),
    min_size=1,
    max_size=6,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{suffix: the bytes of a small sound file}."""
    folder = tmp_path_factory.mktemp("whole")
    packed = {f"t.{q}": (random_blocks(q, 256 // block_type(q).block_size, 1).reshape(1, -1), q) for q in block_types()}
    write_packed(folder / "a.gguf", packed | {"v": (torch.ones(7).numpy(), "F32")})
    tensors = {"a.weight": torch.ones(3, 4).half(), "b": torch.ones(5), "c": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    save_file(tensors | {"c.scale_weight": torch.ones(())}, folder / "a.safetensors", {"format": "pt"})
    return {suffix: (folder / f"a.{suffix}").read_bytes() for suffix in ("gguf", "safetensors")}


def damaged(content, edits):
    """The bytes after the edits, most of which fall into the header."""
    content = bytearray(content)
    for how, place, piece in edits:
        at = place % max(1, min(len(content), 1600))
        if how == "write":
            content[at : at + len(piece)] = piece
        elif how == "insert":
            content[at:at] = piece
        elif how == "delete":
            del content[at : at + len(piece)]
        elif how == "cut":
            del content[max(4, place % max(1, len(content))) :]
        else:
            content[at:at] = content[at : at + 64]
    return bytes(content)


def opened(path):
    """(the checkpoint, "") or (None, why not)."""
    try:
        checkpoint = open_checkpoint(path)
        check_scales(path.name, checkpoint.tensors, lambda n_bytes: None)
    except CheckpointError as error:
        return None, str(error)
    return checkpoint, ""


fuzzed = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "6000")),
    deadline=None,  # of wall time, which others use too
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("suffix", ["gguf", "safetensors"])
@fuzzed
@given(edits=EDITS)
def test_any_damage_is_answered(suffix, edits, whole, tmp_path):
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(damaged(whole[suffix], edits))
    begin = time.thread_time()
    checkpoint, complaint = opened(path)
    assert time.thread_time() - begin < 2
    if checkpoint is None:
        assert complaint.startswith(path.name)
        return
    for tensor in checkpoint.tensors.values():
        if tensor.qtype in supported_types():
            assert tuple(tensor.decode().shape) == tensor.shape
    for read in (read_weights, read_clip_l, read_t5xxl):
        with pytest.raises(CheckpointError, match=path.name):
            read(checkpoint)


LORA_SHAPES = {f"transformer_blocks.0.attn.to_{n}": (6, 4) for n in "qkv"}


@pytest.fixture(scope="module")
def whole_lora(tmp_path_factory):
    """The bytes of a LoRA file with something of every kind."""
    tensors = {
        "transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 4).half(),
        "transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(6, 2).half(),
        "transformer_blocks.0.attn.to_q.dora_scale": torch.ones(6, 1).half(),
        "transformer_blocks.0.attn.to_q.alpha": torch.tensor(2.0),
        "lora_unet_transformer_blocks_0_attn_to_k.lokr_w1": torch.ones(3, 2),
        "lora_unet_transformer_blocks_0_attn_to_k.lokr_w2": torch.ones(2, 2),
        **{f"transformer_blocks.0.attn.to_v.hada_w{i}_a": torch.ones(6, 2) for i in (1, 2)},
        **{f"transformer_blocks.0.attn.to_v.hada_w{i}_b": torch.ones(2, 4) for i in (1, 2)},
    }
    path = tmp_path_factory.mktemp("whole") / "lora.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": '{"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_v": 3}}'})
    assert len(read_lora(path, LORA_SHAPES).adapters) == 3
    return path.read_bytes()


@fuzzed
@given(edits=EDITS)
def test_any_damage_to_a_lora_is_answered(edits, whole_lora, tmp_path):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(damaged(whole_lora, edits))
    begin = time.thread_time()
    try:
        lora, answer = read_lora(path, LORA_SHAPES), path.name
    except CheckpointError as error:
        lora, answer = None, str(error)
    assert time.thread_time() - begin < 2
    assert answer.startswith(path.name)
    if lora:
        assert all(adapter.delta().shape == LORA_SHAPES[name] for name, adapter in lora.adapters.items())
        assert lora.report().startswith(path.name)
