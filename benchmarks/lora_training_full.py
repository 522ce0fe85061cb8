"""Training a LoRA on a full-size FLUX: seconds a step and memory, on BF16 and on quantized weights.

    COMFYUI_PATH=... python benchmarks/lora_training_full.py [--tiny] [--mix Q4_K_M] [--folder FOLDER] [--out FILE]

Random weights and edits: 1024x1024 result and reference, 512 text tokens, rank 8 on all Linears of the blocks, a batch
of one, blocks computed again in the backward pass. Medians of synchronized steps, optimizer included, after a warm-up.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import report
import torch
from random_files import DEVICE, MIXES, base_files, full_step

STEPS, WARM_UP = 12, 3


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "lora_training_full.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--mix", choices=MIXES, default="Q4_K_M")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    shapes, arguments = full_step(options.tiny)
    rows: list[dict[str, Any]] = []
    with report.folder(options) as folder:
        for name, path in base_files(folder, shapes, options.mix).items():
            rows += train(name, path, arguments)
    report.write(options.out, rows, "lora_training_full.py", "--mix", options.mix)


def train(name: str, path: Path, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """A few steps on this file's weights."""
    from kontextkit.bridge.training import load_transformer
    from kontextkit.engine.training.lora import Example, LoraTraining, Settings

    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    transformer = load_transformer(path).to(DEVICE)
    weights = sum(p.nbytes for p in transformer.parameters()) / 1e9
    latents = torch.cat([arguments["x"], *arguments["ref_latents"]]).float().cpu()
    example = Example(latents, arguments["context"][0].float().cpu(), arguments["y"][0].float().cpu())
    training = LoraTraining(transformer, [example], Settings(steps=STEPS), {})
    begins: list[float] = []

    def begin(step: int) -> None:
        report.synchronize()
        begins.append(time.perf_counter())

    training.run(path.with_suffix(".checkpoint"), print, begin)
    peak = torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else 0.0
    ms = 1e3 * statistics.median(b - a for a, b in pairwise(begins[WARM_UP:]))
    note = f"weights {weights:.1f} GB; losses {training.losses[0]:.3f} to {training.losses[-1]:.3f}"
    path.with_suffix(".checkpoint").unlink()
    return [
        report.row(f"lora.training.{name}.step_ms", ms, "ms", note),
        report.row(f"lora.training.{name}.peak_gb", peak, "GB", "allocated by torch"),
    ]


if __name__ == "__main__":
    main()
