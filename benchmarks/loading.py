"""Loading full-size files on the CPU: seconds, host memory, leaks; and one prompt through full-size text encoders.

    COMFYUI_PATH=... python benchmarks/loading.py FOLDER [--out FILE]

Files of random blocks are made in FOLDER and taken away again: 7 GB a transformer in Q4_K_M's types, 3 GB the encoders.
They come from the page cache, so a cold disk adds its own time. Linux: memory is read from /proc.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from random_files import FULL, mixed, write_gguf

N_LOADS = 20
GOAL = 1.1  # of a file's size


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "loading.json")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    paths = [options.folder / name for name in ("transformer.gguf", "t5xxl.gguf", "clip_l.gguf")]
    from kontextkit.devtools.flux_shapes import bfl_shapes

    try:
        for path, types in zip(paths, (mixed(bfl_shapes(**FULL), "Q4_K_M"), t5xxl(), clip_l()), strict=True):
            write_gguf(path, types)
        rows = measure(*paths)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)
    report.write(options.out, rows, "loading.py", "FOLDER")


def measure(model: Path, t5: Path, clip: Path) -> list[dict[str, Any]]:
    """Each first warmed up, so that imports do not count."""
    from kontextkit.bridge.model import load
    from kontextkit.bridge.text_encoders import load_text_encoders

    rows = loads("gguf.load", lambda: load(model), model.stat().st_size)
    rows += loads("encoders.load", lambda: load_text_encoders(clip, t5), t5.stat().st_size + clip.stat().st_size)
    encoders = load_text_encoders(clip, t5)
    with torch.inference_mode():
        begin = time.perf_counter()
        encoders.encode_from_tokens_scheduled(encoders.tokenize("make the car red"))
        seconds = time.perf_counter() - begin
    return [*rows, report.row("encoders.encode_seconds_cpu", seconds, "s", "a prompt of 256 tokens, T5-XXL in Q4_K")]


def loads(name: str, load: Callable[[], Any], n_bytes: int) -> list[dict[str, Any]]:
    """Seconds, the peak of host memory over the file's size, and what N_LOADS loads leave behind."""
    load()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = memory("VmRSS")
    begin = time.perf_counter()
    held = load()
    seconds = time.perf_counter() - begin
    ratio = (memory("VmHWM") - before) / n_bytes
    del held
    gc.collect()
    anonymous = memory("RssAnon")
    for _ in range(N_LOADS):
        load()
        gc.collect()
    growth = (memory("RssAnon") - anonymous) / 1e6
    size = f"a file of {n_bytes / 1e9:.1f} GB in the page cache"
    return [
        report.row(f"{name}.seconds", seconds, "s", size),
        report.row(
            f"{name}.host_ratio", ratio, "ratio", "peak of host memory, mapped file counted, over the file's size", GOAL
        ),
        report.row(f"{name}.growth_mb", growth, "MB", f"own memory after {N_LOADS} more loads and releases"),
    ]


def memory(key: str) -> int:
    """Bytes, from /proc/self/status."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def t5xxl() -> dict[str, tuple[tuple[int, ...], str]]:
    """T5-XXL's encoder in llama.cpp's names."""
    tensors = {"token_embd.weight": ((32128, 4096), "Q4_K"), "enc.output_norm.weight": ((4096,), "F32")}
    tensors["enc.blk.0.attn_rel_b.weight"] = ((32, 64), "F32")
    wide, down = (10240, 4096), (4096, 10240)
    for block in (f"enc.blk.{i}" for i in range(24)):
        tensors |= {f"{block}.attn_{part}.weight": ((4096, 4096), "Q4_K") for part in "qkvo"}
        tensors |= {f"{block}.ffn_{part}.weight": (wide, "Q4_K") for part in ("gate", "up")}
        tensors[f"{block}.ffn_down.weight"] = (down, "Q4_K")
        tensors |= {f"{block}.{part}_norm.weight": ((4096,), "F32") for part in ("attn", "ffn")}
    return tensors


def clip_l() -> dict[str, tuple[tuple[int, ...], str]]:
    """CLIP-L in Hugging Face's names."""
    width, wide = 768, 3072
    embeddings = {"token_embedding": (49408, width), "position_embedding": (77, width)}
    shapes: dict[str, tuple[int, ...]] = {f"embeddings.{name}.weight": shape for name, shape in embeddings.items()}
    for layer in (f"encoder.layers.{i}" for i in range(12)):
        matrices = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        matrices |= {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}
        for name, shape in matrices.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        shapes |= {f"{layer}.layer_norm{i}.{part}": (width,) for i in (1, 2) for part in ("weight", "bias")}
    shapes |= {f"final_layer_norm.{part}": (width,) for part in ("weight", "bias")}
    return {f"text_model.{name}": (shape, "F16") for name, shape in shapes.items()}


if __name__ == "__main__":
    main()
