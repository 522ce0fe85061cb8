"""Small random files under the names that the bundled workflows use, so that every workflow runs anywhere.

The real files are gigabytes and come with licences of their own. Random weights paint noise: these files prove
that a workflow runs, nothing about pictures.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

TRANSFORMER = "diffusion_models/flux1-dev-kontext_fp8_scaled.safetensors"
VAE = "vae/ae.safetensors"
TEXT_ENCODER = "text_encoders/clip_l.safetensors"
HIDDEN, TEXT, POOLED = 256, 768, 768

# Nodes that need a file of fixed size or work at a fixed one: (what stands in, its widgets in order).
_SWAPS: dict[str, tuple[str, dict[str, Any]]] = {
    "DualCLIPLoader": (
        "CLIPLoader",
        {"clip_name": Path(TEXT_ENCODER).name, "type": "stable_diffusion", "device": "default"},
    ),
    "FluxKontextImageScale": ("ImageScale", {"upscale_method": "area", "width": 256, "height": 256, "crop": "center"}),
}


def api_with_stand_ins(workflow: dict[str, Any], steps: int) -> dict[str, Any]:
    """An API-format workflow that runs on the stand-in files in `steps` steps."""
    workflow = copy.deepcopy(workflow)
    for node in workflow.values():
        if node["class_type"] in _SWAPS:
            node["class_type"], widgets = _SWAPS[node["class_type"]]
            links = {name: value for name, value in node["inputs"].items() if isinstance(value, list)}
            node["inputs"] = links | widgets
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = steps
    return workflow


def ui_with_stand_ins(workflow: dict[str, Any], steps: int) -> dict[str, Any]:
    """A UI-format workflow that runs on the stand-in files in `steps` steps."""
    workflow = copy.deepcopy(workflow)
    for node in workflow["nodes"]:
        if node["type"] in _SWAPS:
            node["type"], widgets = _SWAPS[node["type"]]
            node["widgets_values"] = list(widgets.values())
            node.get("properties", {}).pop("Node name for S&R", None)
        if node["type"] == "KSampler":
            node["widgets_values"][2] = steps
    return workflow


def write_stand_ins(models: Path) -> None:
    """Write the files below the models folder, unless they are there."""
    for name, write in ((TRANSFORMER, _write_transformer), (VAE, _write_vae), (TEXT_ENCODER, _write_text_encoder)):
        path = models / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            write(unfinished)
            unfinished.rename(path)


def bfl_shapes(hidden: int = HIDDEN, text: int = TEXT, pooled: int = POOLED, depth: int = 2, single: int = 4) -> dict:
    """{BFL name: shape} of a FLUX.1 transformer with guidance embedding."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in), (n_out,)

    linear("img_in", 64, hidden)
    linear("txt_in", text, hidden)
    for name, width in (("time_in", 256), ("vector_in", pooled), ("guidance_in", 256)):
        linear(f"{name}.in_layer", width, hidden)
        linear(f"{name}.out_layer", hidden, hidden)
    for i in range(depth):
        for stream in ("img", "txt"):
            stem = f"double_blocks.{i}.{stream}"
            linear(f"{stem}_mod.lin", hidden, 6 * hidden)
            linear(f"{stem}_attn.qkv", hidden, 3 * hidden)
            linear(f"{stem}_attn.proj", hidden, hidden)
            linear(f"{stem}_mlp.0", hidden, 4 * hidden)
            linear(f"{stem}_mlp.2", 4 * hidden, hidden)
            shapes |= {f"{stem}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    for i in range(single):
        linear(f"single_blocks.{i}.modulation.lin", hidden, 3 * hidden)
        linear(f"single_blocks.{i}.linear1", hidden, 7 * hidden)
        linear(f"single_blocks.{i}.linear2", 5 * hidden, hidden)
        shapes |= {f"single_blocks.{i}.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)
    linear("final_layer.linear", hidden, 64)
    return shapes


def random_transformer(seed: int = 0) -> dict[str, np.ndarray]:
    """{BFL name: float32 array} of a tiny FLUX transformer with tame random weights."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in bfl_shapes().items():
        center, spread = (1.0, 0.5) if name.endswith("scale") else (0.0, 0.35 / np.sqrt(shape[-1]))
        arrays[name] = rng.normal(center, spread, shape).astype(np.float32)
    return arrays


def _write_transformer(path: Path) -> None:
    """Scaled fp8, as ComfyUI's own repackaged Kontext is stored: matrices in E4M3 with a scale, the rest in BF16."""
    import torch
    from safetensors.torch import save_file

    tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, array in random_transformer().items():
        values = torch.from_numpy(array)
        if values.ndim == 1:
            tensors[name] = values.bfloat16()
        else:
            scale = values.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            tensors[name] = (values / scale).to(torch.float8_e4m3fn)
            tensors[name.removesuffix("weight") + "scale_weight"] = scale
    save_file(tensors, path)


def _write_vae(path: Path) -> None:
    """A TAESD (https://github.com/madebyollin/taesd) of 16 latent channels; ComfyUI knows it by its names."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def conv(name: str, n_in: int, n_out: int, kernel: int = 3, bias: bool = True) -> None:
        spread = 1.4 / (n_in * kernel * kernel) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(n_out, n_in, kernel, kernel, generator=generator) * spread
        if bias:
            tensors[f"{name}.bias"] = torch.zeros(n_out)

    def block(name: str) -> None:
        for layer in (0, 2, 4):
            conv(f"{name}.conv.{layer}", 64, 64)
        tensors[f"{name}.conv.4.weight"].zero_()  # adds nothing: depth would only saturate the picture

    conv("taesd_encoder.0", 3, 64)
    block("taesd_encoder.1")
    for stage in (2, 6, 10):
        conv(f"taesd_encoder.{stage}", 64, 64, bias=False)
        for i in range(1, 4):
            block(f"taesd_encoder.{stage + i}")
    conv("taesd_encoder.14", 64, 16)
    conv("taesd_decoder.1", 16, 64)
    for stage in (3, 8, 13):
        for i in range(3):
            block(f"taesd_decoder.{stage + i}")
        conv(f"taesd_decoder.{stage + 4}", 64, 64, bias=False)
    block("taesd_decoder.18")
    conv("taesd_decoder.19", 64, 3)
    tensors["taesd_decoder.19.weight"] *= 0.3
    tensors["taesd_decoder.19.bias"] += 0.5
    save_file(tensors, path)


def _write_text_encoder(path: Path) -> None:
    """A CLIP-L text model; the smallest text encoder that ComfyUI loads from a file, 123 M parameters."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Any] = {}

    def normal(name: str, *shape: int, spread: float = 0.02) -> None:
        tensors[f"text_model.{name}"] = (torch.randn(*shape, generator=generator) * spread).half()

    def norm(name: str) -> None:
        tensors[f"text_model.{name}.weight"] = torch.ones(TEXT).half()
        tensors[f"text_model.{name}.bias"] = torch.zeros(TEXT).half()

    normal("embeddings.token_embedding.weight", 49408, TEXT)
    normal("embeddings.position_embedding.weight", 77, TEXT)
    for i in range(12):
        stem = f"encoder.layers.{i}"
        for name, n_in, n_out in (
            *((f"self_attn.{part}_proj", TEXT, TEXT) for part in ("q", "k", "v", "out")),
            ("mlp.fc1", TEXT, 4 * TEXT),
            ("mlp.fc2", 4 * TEXT, TEXT),
        ):
            normal(f"{stem}.{name}.weight", n_out, n_in)
            tensors[f"text_model.{stem}.{name}.bias"] = torch.zeros(n_out).half()
        norm(f"{stem}.layer_norm1")
        norm(f"{stem}.layer_norm2")
    norm("final_layer_norm")
    save_file(tensors, path)
