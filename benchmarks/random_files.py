"""Full-size weights and inputs of random numbers: times and memory do not care, as long as all is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

FULL = {"hidden": 3072, "text": 4096, "pooled": 768, "depth": 19, "single": 38}  # FLUX.1, for devtools.flux_shapes
TINY = {"hidden": 256, "text": 64, "pooled": 32, "depth": 2, "single": 2}
MIXES = {  # of FLUX's GGUF files: the type of the blocks' matrices, and of the double blocks' qkv
    "Q8_0": ("Q8_0", "Q8_0"),
    "Q6_K": ("Q6_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K"),
    "Q4_K_M": ("Q4_K", "Q5_K"),
    "Q3_K_M": ("Q3_K", "Q4_K"),
}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COMPUTE = torch.bfloat16 if torch.cuda.is_available() else torch.float32
N_RANDOM = 4096  # blocks drawn for a tensor, then repeated

Shape = tuple[int, ...]


def mixed(shapes: Mapping[str, Shape], mix: str) -> dict[str, tuple[Shape, str]]:
    """{BFL name: (shape, qtype)}, as such a file has them: vectors in F32, matrices outside the blocks in BF16."""
    matrix, qkv = MIXES[mix]

    def qtype(name: str, shape: Shape) -> str:
        if len(shape) == 1:
            return "F32"
        if "blocks." not in name:
            return "BF16"
        return qkv if "_attn.qkv" in name else matrix

    return {name: (shape, qtype(name, shape)) for name, shape in shapes.items()}


def random_blocks(shape: Shape, qtype: str, rng: np.random.Generator) -> np.ndarray:
    """Packed rows (..., row_bytes) uint8 whose weights spread by less than one over the root of their number."""
    from kontextkit.engine.quant import block_type

    layout = block_type(qtype)
    assert layout
    few = rng.integers(0, 256, (N_RANDOM, layout.n_bytes), dtype=np.uint8)
    scale = 0.01 / 2 ** (layout.block_size / 64) / math.sqrt(shape[-1])  # K-quants multiply by a second scale
    for start in layout.halves:
        few[:, start : start + 2] = np.array([scale], np.float16).view(np.uint8)
    return np.resize(few, (math.prod(shape) // layout.block_size, layout.n_bytes)).reshape(*shape[:-1], -1)


def write_gguf(path: Path, tensors: Mapping[str, tuple[Shape, str]]) -> None:
    """{name: (shape, qtype)} as gguf-py writes them; FLUX's norms are ones, its other dense tensors small."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "flux")
    for name, (shape, qtype) in tensors.items():
        kind = gguf.GGMLQuantizationType[qtype]
        if qtype in ("F32", "F16", "BF16"):
            small = rng.normal(1.0 if name.endswith("scale") else 0.0, 0.02, shape).astype(np.float32)
            values: Any = gguf.quantize(small, kind)
        else:
            values = random_blocks(shape, qtype, rng)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_bf16(path: Path, shapes: Mapping[str, Shape]) -> None:
    """Tame random weights as BF16 safetensors in BFL's names."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    spread = {name: 1.0 if name.endswith("scale") else 0.3 / shape[-1] ** 0.5 for name, shape in shapes.items()}
    save_file({n: (torch.randn(s, device=DEVICE) * spread[n]).bfloat16().cpu() for n, s in shapes.items()}, path)


def write_lora(path: Path, linears: Mapping[str, tuple[int, int]], rank: int, seed: int) -> None:
    """A small random LoRA in BF16 on {diffusers name: (out, in)}, unless the file is there."""
    from safetensors.torch import save_file

    if path.exists():
        return
    torch.manual_seed(seed)
    tensors = {}
    for name, (n_out, n_in) in linears.items():
        for part, shape in (("lora_A", (rank, n_in)), ("lora_B", (n_out, rank))):
            tensors[f"transformer.{name}.{part}.weight"] = (torch.randn(shape, device=DEVICE) * 0.01).bfloat16().cpu()
    save_file(tensors, path)


def base_files(folder: Path, shapes: Mapping[str, Shape], mix: str) -> dict[str, Path]:
    """{name: file} of random weights in BF16 and in a mix, written unless they are there."""
    return {"bf16": base_file(folder, shapes), mix.lower(): base_file(folder, shapes, mix)}


def base_file(folder: Path, shapes: Mapping[str, Shape], mix: str = "") -> Path:
    """The file of random weights in BF16, or in a mix, written unless it is there."""
    from kontextkit.engine.whole_file import whole_file

    path = folder / (f"{mix}.gguf" if mix else "bf16.safetensors")
    if not path.exists():
        with whole_file(path) as unfinished:
            if mix:
                write_gguf(unfinished, mixed(shapes, mix))
            else:
                write_bf16(unfinished, shapes)
    return path


def full_step(tiny: bool) -> tuple[dict[str, Shape], dict[str, Any]]:
    """FLUX.1's shapes by BFL's names and a pass at 1024x1024 with such a reference, or those of a tiny model."""
    from kontextkit.devtools.flux_shapes import bfl_shapes

    shapes = bfl_shapes(**(TINY if tiny else FULL))
    return shapes, call(16 if tiny else 128, shapes, COMPUTE)


def call(side: int, shapes: Mapping[str, Shape], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of one forward pass: a target and a reference of `side` latent pixels, 512 text tokens."""
    generator = torch.Generator(DEVICE).manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)

    return {
        "x": normal(1, 16, side, side),
        "timestep": torch.tensor([0.7], device=DEVICE),
        "context": normal(1, 512, shapes["txt_in.weight"][1]),
        "y": normal(1, shapes["vector_in.in_layer.weight"][1]),
        "guidance": torch.tensor([2.5], device=DEVICE).to(dtype),
        "ref_latents": [normal(1, 16, side, side)],
    }
