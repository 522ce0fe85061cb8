"""Seconds that compiling adds to the first run of a process, with nothing compiled before and with what another
process left on disk.

    COMFYUI_PATH=... python benchmarks/warm_start.py [--tiny] [--mix Q4_K_M] [--mode MODE] [--out FILE]

Two processes, each with an empty cache of Inductor's own, share ComfyUI's user folder, where Optimize Kontext keeps its
compiled blocks. FLUX.1's width, six blocks of its 57 (all share the same graphs), 1024x1024 with one such reference;
two steps through ComfyUI's sampler: the first run less the median of three later ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import report

GOAL = 5.0  # seconds


def main() -> None:
    """Command line; with --process, one of the two processes."""
    parser = report.parser(__doc__, "warm_start.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--mix", help="of a GGUF file; BF16 without it")
    parser.add_argument("--mode", default="fused", help="of compilation")
    parser.add_argument("--process", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        print(json.dumps(seconds(options)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cold", "warm"):
            first, later, n_graphs = run_process(Path(folder), name)
            note = f"{n_graphs} graphs, first run {first:.2f} s, later ones {later:.2f} s"
            goal = GOAL if name == "warm" else None
            rows.append(report.row(f"optimize.{name}_start_seconds", first - later, "s", note, goal))
    report.import_comfyui()
    report.write(options.out, rows, "warm_start.py", *sys.argv[1:])


def run_process(folder: Path, name: str) -> tuple[float, float, int]:
    """(first run, later runs, graphs) of a new process."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / name), "TRITON_CACHE_DIR": str(folder / name)}
    command = [sys.executable, __file__, *sys.argv[1:], "--process", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    first, later, n_graphs = json.loads(done.stdout.splitlines()[-1])
    return first, later, n_graphs


def seconds(options: argparse.Namespace) -> tuple[float, float, int]:
    """Of this process: its first run, the median of later ones, and how many graphs it compiled."""
    report.import_comfyui()
    report.import_pack()
    import folder_paths
    import torch
    from kontextkit.bridge import optimize
    from kontextkit.bridge.model import load
    from kontextkit.devtools.flux_shapes import bfl_shapes
    from kontextkit.engine.flux.compiled import n_graphs
    from kontextkit.engine.tiers.presets import AUTO, Choices
    from random_files import COMPUTE, FULL, TINY, call, mixed, write_bf16, write_gguf

    folder_paths.set_user_directory(str(options.process / "user"))
    shapes = bfl_shapes(**(TINY if options.tiny else FULL | {"depth": 2, "single": 4}))
    path = options.process / ("model.gguf" if options.mix else "model.safetensors")
    if not path.exists():
        if options.mix:
            write_gguf(path, mixed(shapes, options.mix))
        else:
            write_bf16(path, shapes)
    attention = AUTO if torch.cuda.is_available() else "comfyui"
    model, _ = optimize.apply(load(path, str(COMPUTE).removeprefix("torch.")), Choices(None, options.mode, attention))
    inputs = call(16 if options.tiny else 128, shapes, COMPUTE)
    times = []
    with torch.inference_mode():
        for _ in range(4):
            report.synchronize()
            begin = time.perf_counter()
            sample(model, inputs)
            report.synchronize()
            times.append(time.perf_counter() - begin)
    return times[0], statistics.median(times[1:]), n_graphs()


def sample(model: Any, inputs: dict[str, Any]) -> Any:
    """Two steps by Euler."""
    import comfy.sample
    import torch

    given = {"pooled_output": inputs["y"], "guidance": 2.5, "reference_latents": inputs["ref_latents"]}
    condition = [[inputs["context"], given]]
    latent = torch.zeros_like(inputs["x"], dtype=torch.float32, device="cpu")
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    how = (2, 1.0, "euler", "simple")
    return comfy.sample.sample(model, noise, *how, condition, condition, latent, disable_pbar=True)


if __name__ == "__main__":
    main()
