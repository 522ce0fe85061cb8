"""A full-size Kontext of random weights: loading, one step beside ComfyUI's own FLUX, and offloading.

    COMFYUI_PATH=... python benchmarks/full_size.py [--tiny] [--dynamic] [--out FILE]

Times are medians of device-synchronised forward passes after warm-up: 1024x1024 target, one 1024x1024 reference,
512 text tokens, batch 1, eager BF16 (float32 without a card). Weights are random: times and memory do not care.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--dynamic" in sys.argv:  # ComfyUI turns it on before torch is imported
    import comfy_aimdo.control

    comfy_aimdo.control.init()
import report
import torch
from random_files import COMPUTE, full_step, mixed, write_bf16, write_gguf

GB = 1e9


def main() -> None:
    """Run everything, print a table, write the rows."""
    parser = report.parser(__doc__, "full_size.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--dynamic", action="store_true", help="with ComfyUI's dynamic VRAM, as main.py turns it on")
    options = parser.parse_args()
    report.variant(parser, options, *["dynamic"] * options.dynamic)
    report.import_comfyui()
    if options.dynamic:
        report.turn_on_dynamic_vram()
    report.import_pack()
    shapes, arguments = full_step(options.tiny)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        bench = Bench(rows, arguments, "dynamic." if options.dynamic else "")
        bench.run(Path(folder), shapes)
    report.write(options.out, rows, "full_size.py", *["--dynamic"] * options.dynamic)


class Bench:
    """The measurements, each adding rows."""

    def __init__(self, rows: list[dict[str, Any]], call: dict[str, Any], prefix: str):
        self.rows, self.call, self.prefix = rows, call, prefix
        self.device = call["x"].device

    def row(self, name: str, measured: float, unit: str, note: str = "", goal: float | None = None) -> None:
        """One result; lower is better in all of them."""
        self.rows.append(report.row(self.prefix + name, measured, unit, note, goal))

    def run(self, folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        """Files, then ComfyUI's own model, then ours."""
        import comfy.sd
        from kontextkit.bridge.model import load

        dtype = str(COMPUTE).removeprefix("torch.")
        plain, packed = folder / "bf16.safetensors", folder / "q8_0.gguf"
        write_bf16(plain, shapes)
        write_gguf(packed, mixed(shapes, "Q8_0"))
        self.row("file.bf16_gb", plain.stat().st_size / GB, "GB")
        self.row("file.q8_0_gb", packed.stat().st_size / GB, "GB")
        peer = self.measure("peer.comfyui", lambda: comfy.sd.load_diffusion_model(str(plain)))
        ours = self.measure("kontextkit.bf16", lambda: load(plain, dtype))
        self.row("kontextkit.bf16.velocity_error", ((ours - peer).norm() / peer.norm()).item(), "relative",
                 "to ComfyUI's own FLUX, same file, both BF16")  # fmt: skip
        full = self.measure("kontextkit.q8_0", lambda: load(packed, dtype))
        if self.prefix:
            return  # dynamic VRAM keeps its own account: no cap, and torch does not see its weights
        for gigabytes in (8, 4):
            offloaded = self.measure(f"kontextkit.q8_0.in_{gigabytes}_gb", lambda: load(packed, dtype), gigabytes)
            error = ((offloaded - full).norm() / full.norm()).item()
            self.row(f"kontextkit.q8_0.in_{gigabytes}_gb.velocity_error", error, "relative", "to all on the card")

    def measure(self, name: str, load: Callable[[], Any], gigabytes: float | None = None) -> torch.Tensor:
        """Load, move to the card (at most `gigabytes` of weights), time steps, unload; the velocity as float32."""
        import comfy.model_management as management

        anonymous, begin = anonymous_gb(), time.perf_counter()
        patcher = load()
        self.row(f"{name}.load_seconds", time.perf_counter() - begin, "s", "until the MODEL can be wired")
        self.row(f"{name}.host_copy_gb", anonymous_gb() - anonymous, "GB", "memory taken beside the mapped file")
        begin = time.perf_counter()
        if gigabytes is not None:
            free = management.get_free_memory(self.device) if self.device.type == "cuda" else 0
            management.EXTRA_RESERVED_VRAM, kept = free - gigabytes * GB, management.EXTRA_RESERVED_VRAM
        management.load_models_gpu([patcher])
        if gigabytes is not None:
            management.EXTRA_RESERVED_VRAM = kept
        report.synchronize()
        self.row(f"{name}.to_card_seconds", time.perf_counter() - begin, "s", "includes reading the file")
        self.reset_peak()
        model = patcher.model.diffusion_model
        velocity = model(**self.call).float()
        self.row(f"{name}.step_ms", self.median_ms(lambda: model(**self.call)), "ms")
        if self.device.type == "cuda" and not self.prefix:
            self.row(f"{name}.peak_gb", torch.cuda.max_memory_allocated() / GB, "GB", "weights and one step")
        management.unload_all_models()
        del patcher
        gc.collect()
        management.soft_empty_cache()
        return velocity

    def median_ms(self, step: Callable[[], Any]) -> float:
        """Median time of a step."""
        return 1e3 * statistics.median(report.in_turns({"": step}, turns=12)[""])

    def reset_peak(self) -> None:
        """Count peak memory from here."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()


def anonymous_gb() -> float:
    """Memory of this process that is no mapped file (Linux)."""
    gc.collect()
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) * 1024 / GB
    return float("nan")


if __name__ == "__main__":
    main()
