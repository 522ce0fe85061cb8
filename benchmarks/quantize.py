"""The quantizer: sizes, sameness with ggml, times and memory.

    COMFYUI_PATH=... python benchmarks/quantize.py [--parts sizes blocks cpu gpu] [--folder FOLDER] [--tiny]

sizes: bytes of full-size files, by their shapes. blocks: how many blocks are ggml's own, byte for byte, of weights from
a normal and a heavy-tailed distribution; on the card too, where there is one. cpu: a full-size BF16 file of random
weights, 24 GB, is written into the folder, unless it is there, and quantized on all cores into it. gpu: full-size
random weights are made on the card and encoded there, tensor by tensor. Memory is the most that the process ever had
resident, pages of mapped files among it.
"""

from __future__ import annotations

import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import report
import torch
from random_files import FULL, TINY, Shape

SIZES = {"Q4_K_M": 6_931_817_760, "Q8_0": 12_714_452_256}  # of the published files
CPU_GOALS = {"Q8_0": 15 * 60, "Q4_K_M": 40 * 60}  # seconds
GPU_GOALS = {"Q4_K_M": 60}
N_RANDOM = 1 << 24  # numbers drawn; a file repeats them from other places
GIB_GOAL = 3.0  # of memory


def sizes(shapes: Mapping[str, Shape], full: bool) -> Iterator[dict[str, Any]]:
    """Bytes of every type's file."""
    from kontextkit.engine.gguf.writer import lay_out
    from kontextkit.engine.quantizer.mixes import MIXES

    for qtype, mix in MIXES.items():
        notes: dict[str, str | int] = {
            "general.architecture": "flux",
            "general.quantization_version": 2,
            "general.file_type": mix.file_type,
        }
        layout = lay_out(notes, [(name, mix.qtype(name, shape), shape) for name, shape in shapes.items()])
        goal = SIZES.get(qtype) if full else None
        row = report.row(f"quantize.{qtype.lower()}.bytes", layout.n_bytes, "bytes", "from the shapes alone", goal)
        yield row | {"measured": layout.n_bytes}


def blocks(n_rows: int) -> Iterator[dict[str, Any]]:
    """The share of blocks that are ggml's own."""
    import ctypes

    import ggml
    import numpy as np
    from kontextkit.engine.quant import block_type
    from kontextkit.engine.quant.encode import encodable_types, encode

    rng = np.random.default_rng(0)
    half = n_rows // 2
    weights = np.concatenate((rng.standard_normal((half, 3072)), rng.standard_t(2, (half, 3072)))).astype(np.float32)
    weights *= 0.02
    for qtype in encodable_types():
        layout = block_type(qtype)
        assert layout
        theirs = np.empty((n_rows, layout.row_bytes(3072)), np.uint8)
        source, target = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), theirs.ctypes.data_as(ctypes.c_void_p)
        ggml.ggml_quantize_chunk(getattr(ggml, f"GGML_TYPE_{qtype}"), source, target, 0, n_rows, 3072, None)
        for device, prefix in (("cpu", ""), ("cuda", "gpu.")):
            if device == "cuda" and not torch.cuda.is_available():
                continue
            ours = encode(torch.from_numpy(weights).to(device), layout).cpu().numpy()
            same = (ours == theirs).reshape(-1, layout.n_bytes).all(axis=1)
            note = f"{same.sum()} of {same.size} blocks"
            name = f"quantize.{prefix}{qtype.lower()}.blocks_identical"
            yield report.row(name, float(same.mean()), "share", note, 1.0, "higher")


def cpu(shapes: Mapping[str, Shape], folder: Path, types: list[str], full: bool) -> Iterator[dict[str, Any]]:
    """Seconds of whole files on the CPU, and the memory that took."""
    from kontextkit.engine.pace import Pace
    from kontextkit.engine.quantizer.run import quantize
    from kontextkit.engine.whole_file import whole_file

    source = folder / "random_bf16.safetensors"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(source) as unfinished:
            write_source(unfinished, shapes)
    for qtype in types:
        target, pace = folder / f"random_{qtype}.gguf", Pace(qtype)

        def show(done: int, total: int, pace: Pace = pace) -> None:
            if text := pace.text(done, total):
                print(text, flush=True)

        begin, used = time.perf_counter(), time.process_time()
        done = quantize(source, qtype, target, progress=show)
        seconds, used = time.perf_counter() - begin, time.process_time() - used
        spent = done.seconds
        note = (
            f"encoding; reading {spent.read:.0f} s, writing {spent.write:.0f} s, all {seconds:.0f} s on "
            f"{os.cpu_count()} cores, {used:.0f} s of processor time; {done.n_bytes} bytes"
        )
        yield report.row(
            f"quantize.{qtype.lower()}.cpu_seconds", spent.encode, "s", note, CPU_GOALS[qtype] if full else None
        )
        target.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    note = "most resident memory of the process, mapped pages and libraries included"
    yield report.row("quantize.peak_host_gb", peak, "GB", note, GIB_GOAL)


def write_source(path: Path, shapes: Mapping[str, Shape]) -> None:
    """A BF16 safetensors file of tame random numbers, a tensor at a time."""
    numbers = (torch.randn(N_RANDOM, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16().view(torch.uint8)
    header, end = {}, 0
    for name, shape in shapes.items():
        n_bytes = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    table = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(table).to_bytes(8, "little") + table)
        for i, shape in enumerate(shapes.values()):
            start, left = 2 * (i * 7919 % N_RANDOM), 2 * math.prod(shape)
            while left:
                part = numbers[start : start + left].numpy()
                file.write(part)
                start, left = 0, left - part.nbytes


def gpu(shapes: Mapping[str, Shape], full: bool) -> Iterator[dict[str, Any]]:
    """Seconds of encoding on the card, weights made there."""
    from kontextkit.engine.quant import block_type
    from kontextkit.engine.quant.encode import encodable_types, encode
    from kontextkit.engine.quantizer.mixes import MIXES
    from kontextkit.engine.quantizer.run import AT_ONCE

    for qtype in sorted(MIXES, key=lambda each: each not in GPU_GOALS):  # what has a goal first
        seconds, n_weights = 0.0, 0
        for name, shape in shapes.items():
            layout = block_type(MIXES[qtype].qtype(name, shape))
            if layout is None or layout.qtype not in encodable_types():
                continue
            rows = max(1, AT_ONCE["cuda"] // shape[1])
            for start in range(0, shape[0], rows):
                n_rows = min(rows, shape[0] - start)
                weights = torch.randn(n_rows, shape[1], device="cuda").mul_(0.02).bfloat16()
                if not n_weights:
                    encode(weights, layout)  # warm-up
                report.synchronize()
                begin = time.perf_counter()
                encode(weights, layout)
                report.synchronize()
                seconds += time.perf_counter() - begin
                n_weights += weights.numel()
        if n_weights:
            note = f"{n_weights / 1e9:.2f} billion weights, reading and writing left out"
            goal = GPU_GOALS.get(qtype) if full else None
            yield report.row(f"quantize.{qtype.lower()}.gpu_seconds", seconds, "s", note, goal)
    peak = torch.cuda.max_memory_allocated() / 1e9
    yield report.row("quantize.gpu_peak_gb", peak, "GB", "of the card's memory, at most")


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "quantize.json")
    parts = ["sizes", "blocks", "cpu", "gpu"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--types", nargs="+", choices=CPU_GOALS, default=list(CPU_GOALS), help="of part cpu")
    parser.add_argument("--folder", type=Path, help="for the source of part cpu, which stays; default: a temporary one")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    from kontextkit.devtools.flux_shapes import bfl_shapes

    shapes, full = bfl_shapes(**(TINY if options.tiny else FULL)), not options.tiny
    rows: list[dict[str, Any]] = []
    how = ["quantize.py", "--parts", *options.parts, *["--tiny"] * options.tiny]
    with tempfile.TemporaryDirectory() as temporary:
        made = {
            "sizes": lambda: sizes(shapes, full),
            "gpu": lambda: gpu(shapes, full) if torch.cuda.is_available() else (),
            "blocks": lambda: blocks(64 if options.tiny else 1024),
            "cpu": lambda: cpu(shapes, options.folder or Path(temporary), options.types, full),
        }
        for part in (part for part in made if part in options.parts):
            for row in made[part]():
                rows.append(row)
                report.save(options.out, rows, *how)  # it takes an hour
    report.write(options.out, rows, *how)


if __name__ == "__main__":
    main()
