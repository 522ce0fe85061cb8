"""The twins: one file of random weights in ComfyUI's own Flux and in ours; and how ComfyUI runs nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flux_files import write_gguf
from hosted_loras import linears
from loras import random
from optimized import NODE, Said
from oracle import Twins, make_twins
from PIL import Image
from safetensors.torch import load_file, save_file

EDIT = "add a large red square in the middle"  # of which the demo makes a filled one


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


@pytest.fixture(scope="session")
def lora_bases(twins, tmp_path_factory):
    """{qtype: path} of the twins' weights."""
    packed = write_gguf(tmp_path_factory.mktemp("packed") / "packed.gguf", load_file(twins.path), "Q8_0")
    return {"F32": twins.path, "Q8_0": packed}


@pytest.fixture(params=["F32", "Q8_0"])
def lora_base(lora_bases, request):
    """A MODEL to put LoRAs on, of each type in turn."""
    import comfy.model_management as management
    from kontextkit.bridge.model import load

    yield load(lora_bases[request.param], "float32", disable_dynamic=True)
    management.unload_all_models()


@pytest.fixture(scope="session")
def lora_files(lora_bases, tmp_path_factory):
    """name -> a LoRA file on all Linears, of rank 4 to 6 and scale 0.5."""
    from kontextkit.bridge.model import load

    folder, layers = tmp_path_factory.mktemp("loras"), linears(load(lora_bases["F32"], "float32"))

    def write(name):
        seed, tensors = ord(name), {}
        for i, (linear, layer) in enumerate(layers.items()):
            rank = 4 + i % 3
            tensors[f"transformer.{linear}.lora_A.weight"] = random(rank, layer.in_features, seed=seed + i) * 0.05
            tensors[f"transformer.{linear}.lora_B.weight"] = random(layer.out_features, rank, seed=seed - i) * 0.05
            tensors[f"transformer.{linear}.alpha"] = torch.tensor(rank / 2)
        save_file(tensors, folder / f"{name}.safetensors")
        return folder / f"{name}.safetensors"

    return {name: write(name) for name in "ab"}


@pytest.fixture(scope="session")
def edits(tmp_path_factory):
    """Three small edits of a new kind: a red frame around the picture."""
    folder = tmp_path_factory.mktemp("edits")
    for i, color in enumerate([(35, 71, 204), (43, 153, 61), (245, 245, 242)]):
        before = Image.new("RGB", (64, 64), color)
        after = Image.new("RGB", (64, 64), (219, 38, 36))
        after.paste(before.crop((0, 0, 40, 40)), (12, 12))
        before.save(folder / f"{i}_ref.png")
        after.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(EDIT)
    return folder


@pytest.fixture
def said(comfyui, monkeypatch):
    """What runs under Optimize Kontext show."""
    from kontextkit.bridge import optimize

    said = Said()
    monkeypatch.setattr(optimize, "show", said.show)
    return said


@pytest.fixture(scope="module")
def model(twins):
    """The twins' file as our MODEL, in float32."""
    from kontextkit.bridge.model import load

    return load(twins.path, "float32")


@pytest.fixture
def optimize_node(comfyui, monkeypatch):
    """Optimize Kontext as ComfyUI runs it."""
    from kontextkit.nodes.optimize import KontextOptimize

    monkeypatch.setattr(KontextOptimize, "hidden", SimpleNamespace(unique_id=NODE))
    return KontextOptimize
