"""What the quantizer writes."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from ggml_oracle import by_ggml
from kontextkit.devtools.flux_shapes import bfl_shapes
from kontextkit.engine.checkpoint import open_checkpoint
from kontextkit.engine.errors import CheckpointError, QuantizeError
from kontextkit.engine.flux.weights import read_weights
from kontextkit.engine.quantizer.__main__ import main as command_line
from kontextkit.engine.quantizer.mixes import MIXES
from kontextkit.engine.quantizer.run import quantize
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tensors():
    """A random FLUX transformer wide enough for K-quants, float32 by BFL's names."""
    generator = torch.Generator().manual_seed(0)
    shapes = bfl_shapes(hidden=256, text=64, pooled=32, depth=1, single=1)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def source(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "model.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    """A Q4_K_M of it."""
    return quantize(source, "Q4_K_M", tmp_path_factory.mktemp("done") / "model-Q4_K_M.gguf")


def diffusers_tensors(source):
    _, weights = read_weights(open_checkpoint(source))
    return {name: tensor.data.clone() for name, tensor in weights.items()}


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_tensor_is_as_ggml_and_gguf_py_encode_it(tensors, done):
    reader = gguf.GGUFReader(done.path)
    assert {tensor.name for tensor in reader.tensors} == set(tensors)
    for tensor in reader.tensors:
        weights, qtype = tensors[tensor.name].numpy(), tensor.tensor_type
        assert tuple(tensor.shape[::-1]) == weights.shape
        expected = gguf.quantize(weights, qtype) if qtype.name in ("F32", "BF16") else by_ggml(weights, qtype.name)
        assert np.array_equal(tensor.data.view(np.uint8), expected.view(np.uint8)), tensor.name


def test_types_and_notes_are_those_of_published_files(done):
    reader = gguf.GGUFReader(done.path)
    notes = {key: field.contents() for key, field in reader.fields.items() if key.startswith("general.")}
    assert notes == {
        "general.architecture": "flux",
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    }
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["double_blocks.0.img_attn.qkv.weight"] == types["double_blocks.0.txt_attn.qkv.weight"] == "Q5_K"
    assert types["single_blocks.0.linear1.weight"] == types["double_blocks.0.img_mod.lin.weight"] == "Q4_K"
    assert types["img_in.weight"] == types["final_layer.linear.weight"] == "BF16"
    assert types["img_in.bias"] == types["single_blocks.0.norm.key_norm.scale"] == "F32"


@pytest.mark.parametrize("qtype", MIXES)
def test_every_type_opens_again_and_is_near_the_source(qtype, source, tensors, tmp_path):
    result = quantize(source, qtype, tmp_path / "model.gguf")
    found = open_checkpoint(result.path).tensors
    assert {name: tensor.shape for name, tensor in found.items()} == {n: tuple(t.shape) for n, t in tensors.items()}
    name = "single_blocks.0.linear2.weight"
    error = (found[name].decode() - tensors[name]).norm() / tensors[name].norm()
    assert error < (0.3 if qtype == "Q2_K" else 0.2 if qtype.startswith("Q3") else 0.1)


def test_the_notes_beside_tell_both_hashes(source, done):
    notes = json.loads((done.path.parent / "model-Q4_K_M.gguf.json").read_text())
    assert notes["sha256"] == done.sha256 == sha256(done.path)
    assert notes["source"] == [{"name": "model.safetensors", "sha256": sha256(source)}]
    assert notes["qtype"] == "Q4_K_M"
    assert notes["types"] == {"F32": 29, "Q4_K": 11, "BF16": 10, "Q5_K": 2}


def test_diffusers_names_give_the_same_file(source, done, tmp_path):
    path = tmp_path / "diffusers.safetensors"
    save_file(diffusers_tensors(source), path)
    assert quantize(path, "Q4_K_M", tmp_path / "model.gguf").sha256 == done.sha256


@pytest.mark.parametrize("chosen", ["x-00001-of-00002.safetensors", "x.safetensors.index.json", ""])
def test_a_model_in_several_files_gives_the_same_file(source, done, tmp_path, chosen):
    tensors = list(diffusers_tensors(source).items())
    names = [f"x-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = dict(tensors[:20]), dict(tensors[20:])
    for name, half in zip(names, halves, strict=True):
        save_file(half, tmp_path / name)
    table = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    assert quantize(tmp_path / chosen, "Q4_K_M", tmp_path / "model.gguf").sha256 == done.sha256
    (tmp_path / names[1]).unlink()
    with pytest.raises(QuantizeError, match=r"1 of 2 files are missing, such as x-00002-of-00002\.safetensors"):
        quantize(tmp_path / chosen, "Q4_K_M", tmp_path / "model.gguf")


def test_the_scales_of_an_fp8_file_are_applied(tensors, tmp_path):
    scaled, plain = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            scale = tensor.abs().max() / 448
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.replace(".weight", ".scale_weight")] = scale
            plain[name] = scaled[name].float() * scale
        else:
            scaled[name] = plain[name] = tensor
    save_file(scaled, tmp_path / "scaled.safetensors")
    save_file(plain, tmp_path / "plain.safetensors")
    one, other = (quantize(tmp_path / f"{n}.safetensors", "Q4_0", tmp_path / f"{n}.gguf") for n in ("scaled", "plain"))
    assert one.sha256 == other.sha256


def test_loras_are_merged_before_quantizing(tensors, source, tmp_path):
    generator = torch.Generator().manual_seed(1)
    down, up = torch.randn(4, 256, generator=generator), torch.randn(768, 4, generator=generator)
    module = "lora_unet_double_blocks_0_img_attn_qkv"
    lora = {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up, f"{module}.alpha": torch.tensor(2.0)}
    save_file(lora, tmp_path / "lora.safetensors")
    result = quantize(source, "BF16", tmp_path / "m.gguf", loras=((tmp_path / "lora.safetensors", 0.25),))
    name = "double_blocks.0.img_attn.qkv.weight"
    expected = tensors[name] + 0.25 * 2 / 4 * up @ down
    assert torch.allclose(open_checkpoint(result.path).tensors[name].decode(), expected, rtol=0.01, atol=1e-4)
    notes = json.loads((tmp_path / "m.gguf.json").read_text())
    assert notes["loras"] == [
        {"name": "lora.safetensors", "sha256": sha256(tmp_path / "lora.safetensors"), "strength": 0.25}
    ]


def test_several_loras_are_merged_as_they_run(tensors, source, tmp_path):
    """Each as if it were the only one: DoRA's norms are of the base weight with its own change alone."""
    generator = torch.Generator().manual_seed(2)
    name, paths = "double_blocks.0.img_attn.qkv.weight", []
    for i in range(2):
        down, up = torch.randn(4, 256, generator=generator) * 0.1, torch.randn(768, 4, generator=generator) * 0.1
        lora = {f"{name.removesuffix('weight')}lora_A.weight": down, f"{name.removesuffix('weight')}lora_B.weight": up}
        lora[f"{name.removesuffix('weight')}dora_scale"] = torch.rand(768, 1, generator=generator) + 0.5
        paths.append(tmp_path / f"{i}.safetensors")
        save_file({f"diffusion_model.{key}": value for key, value in lora.items()}, paths[-1])

    def merged(*loras):
        result = quantize(source, "F16", tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", loras=loras)
        return open_checkpoint(result.path).tensors[name].decode()

    base, first, second = merged(), merged((paths[0], 1.0)), merged((paths[1], 0.7))
    both = merged((paths[0], 1.0), (paths[1], 0.7))
    assert (first - base).norm() > 0.1 * base.norm()
    assert torch.allclose(both, first + second - base, rtol=0.01, atol=2e-3)


def test_rows_that_are_not_whole_blocks_become_f16_and_that_is_said(bfl_tensors, tmp_path):
    save_file(bfl_tensors, tmp_path / "narrow.safetensors")
    result = quantize(tmp_path / "narrow.safetensors", "Q4_K_S", tmp_path / "narrow.gguf")
    name = "double_blocks.0.img_mod.lin.weight"  # 128 columns; img_mlp.2 has 512
    found = open_checkpoint(result.path).tensors
    assert (found[name].qtype, found["double_blocks.0.img_mlp.2.weight"].qtype) == ("F16", "Q4_K")
    assert torch.equal(found[name].decode(), bfl_tensors[name].half().float())
    assert "Stored as F16, because their rows are not whole blocks: double_blocks.0.img_mod.lin.weight" in (
        result.report()
    )


def spoil(tensors, name, value):
    spoilt = tensors[name].clone()
    spoilt.view(-1)[7] = value
    return tensors | {name: spoilt}


BAD = {
    "nan": (
        lambda t: spoil(t, "single_blocks.0.linear2.weight", torch.nan),
        r"linear2\.weight' holds NaN",
    ),
    "infinity": (lambda t: spoil(t, "img_in.bias", -torch.inf), r"tensor 'img_in\.bias' holds infinity"),
    "too large": (lambda t: spoil(t, "single_blocks.0.linear1.weight", 1e30), "up to 1e.30, more than Q4_0 can hold"),
    "half": (lambda t: dict(list(t.items())[:30]), "tensors of a FLUX.1 transformer are missing|0 single_blocks"),
    "another": (lambda t: {"input_blocks.0.0.weight": torch.zeros(1)}, "Stable Diffusion"),
    "shape": (lambda t: t | {"img_in.bias": torch.zeros(255)}, r"has shape \[255\], expected \[256\]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_source_is_explained_and_nothing_is_written(bad, tensors, tmp_path):
    change, message = BAD[bad]
    save_file(change(tensors), tmp_path / "bad.safetensors")
    with pytest.raises((CheckpointError, QuantizeError), match=message):
        quantize(tmp_path / "bad.safetensors", "Q4_0", tmp_path / "bad.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_a_truncated_source_and_a_quantized_one_are_refused(source, done, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(source.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: broken safetensors header"):
        quantize(tmp_path / "cut.safetensors", "Q8_0", tmp_path / "cut.gguf")
    with pytest.raises(QuantizeError, match="quantized already"):
        quantize(done.path, "Q8_0", tmp_path / "twice.gguf")


def test_the_command_line_does_the_same(source, done, tmp_path, monkeypatch, capsys):
    command = [sys.executable, "-m", "engine.quantizer", str(source), "Q4_K_M", str(tmp_path / "out.gguf")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert f"SHA-256 {done.sha256}" in ran.stdout
    monkeypatch.setattr(sys, "argv", [*command[2:], "--strength", "0.5"])
    with pytest.raises(SystemExit, match="2"):
        command_line()
    assert capsys.readouterr().err.endswith("--strength stands more often than --lora; give one for each, in order\n")
