"""Peak GPU memory under a hard cap, what streaming costs, and leaks: full-size GGUF files of random weights.

    COMFYUI_PATH=... python benchmarks/gguf_memory.py [--dynamic] [--only caps|slow_down|load] [--tiny]
        [--folder FOLDER] [--out FILE]

The cap is real: another process holds the card's memory but for the cap before the measured one touches the card, so
that CUDA's context, torch and dynamic VRAM all have to fit. It also reads every 3 ms how much is free: the peak is
the card's own word. Every run is a process of its own, started as ComfyUI's main.py starts: the pack's loader,
ComfyUI's sampling (euler, simple), one reference of the target's size, 512 text tokens, batch 1. GB are 1e9 bytes.
--dynamic: with dynamic VRAM, ComfyUI's default on NVIDIA cards; else its low-VRAM loading.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import report

GB = 1e9
PEAKS = [("Q3_K_M", 512, 6), ("Q4_K_M", 768, 8), ("Q5_K_M", 768, 10)]  # type, pixels a side, GB of the card
CAPS = [6, 8, 10, 12, 16, 24]
SLOWED, PIXELS = "Q4_K_M", 768
QUARTER = {"depth": 5, "single": 10}  # of the blocks, for N_LOADS rounds of loading and unloading with room for half
QUARTER_CAP = 3
N_STEPS, N_LOADS = 5, 20
RELEASED = 8 << 20  # bytes: the last run is gone from the card when no more than this is missing
WATCH = 3e-3  # seconds between two readings of the card's free memory
Result = dict[str, Any]


def main() -> None:
    """Command line; with --job, one of the processes that it starts."""
    parser = report.parser(__doc__, "gguf_memory.json")
    parser.add_argument("--dynamic", action="store_true", help="ComfyUI's dynamic VRAM in place of its low-VRAM path")
    parser.add_argument("--no-prefetch", action="store_true", help="dynamic VRAM without the prefetch of whole blocks")
    parser.add_argument("--only", choices=["caps", "slow_down", "load"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--seconds", type=float, default=90, help="after which a run counts as failed")
    parser.add_argument("--job", choices=["wait", "hold"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    options = parser.parse_args()
    if options.job:
        return hold() if options.job == "hold" else work(options)
    with report.folder(options) as folder, Bench(options, folder) as bench:
        parts = {"caps": bench.caps, "slow_down": bench.slow_down, "load": bench.load}
        for name, part in parts.items():
            if options.only in (None, name):
                part()
    report.import_comfyui()
    given = ["--dynamic"] * options.dynamic + ["--no-prefetch"] * options.no_prefetch
    report.write(options.out, bench.rows, "gguf_memory.py", *given, *["--only", options.only] * bool(options.only))
    return None


class Process:
    """This script once more: it imports what it can and waits for its job, or holds the card's memory."""

    def __init__(self, job: str, *options: str):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  the process outlives this function
        command = [sys.executable, __file__, "--job", job, *options]
        pipe = subprocess.PIPE
        self.popen = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def run(self, job: Result, seconds: float) -> Result:
        """What the job returns, or {'failed': why}."""
        try:
            out, _ = self.popen.communicate(json.dumps(job) + "\n", timeout=seconds)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
            return {"failed": f"took longer than {seconds:.0f} s"}
        if self.popen.returncode == 0:
            return json.loads(out.splitlines()[-1])
        return {"failed": self.last_words()}

    def last_words(self) -> str:
        """Why it ended; more of it goes to the screen."""
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or [f"exit status {self.popen.poll()}"]
        print("\n".join(lines[-20:]), file=sys.stderr)
        return lines[-1][:200]

    def ask(self, question: float | str | None) -> float:
        """One question to the process that holds the card, which stays."""
        self.popen.stdin.write(json.dumps(question) + "\n")
        self.popen.stdin.flush()
        answer = self.popen.stdout.readline()
        if not answer:
            sys.exit(f"the process that holds the card's memory ended: {self.last_words()}")
        return json.loads(answer)

    def end(self) -> None:
        """Whatever it does."""
        self.popen.kill()
        self.popen.wait()


class Bench:
    """The measurements, each adding rows."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.rows: list[Result] = []
        self.done: dict[tuple[Any, ...], Result] = {}
        self.path = "dynamic VRAM" if options.dynamic else "low-VRAM path"
        self.prefix = "dynamic." * options.dynamic + "no_prefetch." * options.no_prefetch

    def __enter__(self) -> Bench:
        self.holder, self.next = Process("hold"), self.start()
        parts = {"caps": [mix for mix, _, _ in PEAKS], "slow_down": [SLOWED], "load": ["quarter"]}
        names = {name for part, files in parts.items() if self.options.only in (None, part) for name in files}
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.write, names))
        return self

    def __exit__(self, *_: object) -> None:
        self.holder.end()
        self.next.end()

    def write(self, name: str) -> None:
        """One file of random blocks, unless it is there, by a process, for the machine has many cores."""
        if Path(self.path_of(name)).exists():
            return
        answer = self.start(dynamic=False).run({"do": "write", "name": name, "path": self.path_of(name)}, 300)
        if "failed" in answer:
            sys.exit(f"{name}: no file: {answer['failed']}")

    def path_of(self, name: str) -> str:
        """A type's file, or the quarter's."""
        return str(self.folder / f"{name}.gguf")

    def start(self, dynamic: bool = True) -> Process:
        """A process for the next job."""
        return Process("wait", *["--tiny"] * self.options.tiny, *["--dynamic"] * (self.options.dynamic and dynamic))

    def run(self, name: str, pixels: int, cap: float | None, do: str = "sample") -> Result:
        """One run with `cap` GB of the card, or all of it; the same run is not made twice."""
        key = (name, pixels, cap, do)
        if key in self.done:
            return self.done[key]
        free = self.holder.ask(None if cap is None else cap * GB)
        process, self.next = self.next, self.start()
        picture = str(self.folder / f"{len(self.done)}.pt")
        side = pixels // (32 if self.options.tiny else 8)
        job = {"do": do, "path": self.path_of(name), "side": side, "picture": picture}
        begin = time.perf_counter()
        result = process.run(job | {"prefetch": not self.options.no_prefetch}, self.options.seconds)
        result |= {"peak": free - self.holder.ask("lowest"), "picture": picture}
        print(f"{name} {pixels} {cap} {do}: {time.perf_counter() - begin:.1f} s {result}", file=sys.stderr)
        self.done[key] = result
        return result

    def add(
        self, name: str, result: Result, unit: str, measured: Callable[[], float], goal: float | None = None
    ) -> None:
        """A row, with what is known of the run in its note."""
        if "failed" not in result and math.isnan(measured()):
            result = {"failed": "no card"}
        if "failed" in result:
            self.rows.append(report.failed(self.prefix + name, unit, f"{self.path}: {result['failed']}", goal))
        else:
            self.rows.append(report.row(self.prefix + name, measured(), unit, f"{self.path}; {result['note']}", goal))

    def caps(self) -> None:
        """Whether each type fits where it should."""
        for mix, pixels, goal in PEAKS:
            result = self.run(mix, pixels, goal)
            self.add(f"gguf.{mix.lower()}.peak_gb.{pixels}", result, "GB", lambda r=result: r["peak"] / GB, goal)

    def slow_down(self) -> None:
        """Step time under each cap over that on the whole card."""
        name, whole = f"gguf.{SLOWED.lower()}", self.run(SLOWED, PIXELS, None)
        self.add(f"{name}.step_ms.{PIXELS}", whole, "ms", lambda: 1e3 * whole["step"])
        for cap in CAPS:
            result = dict(self.run(SLOWED, PIXELS, cap))
            if "failed" in whole:
                result.setdefault("failed", f"no run on the whole card: {whole['failed']}")
            if "failed" not in result:
                error = difference(result["picture"], whole["picture"])
                result["note"] += f"; picture differs by {error:.2g} from that on the whole card"
            self.add(f"{name}.slow_down.{cap}gb", result, "ratio", lambda r=result: r["step"] / whole["step"])

    def load(self) -> None:
        """What N_LOADS times loading, one streamed step and unloading leave behind."""
        result = self.run("quarter", 512, QUARTER_CAP, "cycle")
        self.add("gguf.load_unload.host_growth_mb", result, "MB", lambda: result["host"] / 1e6)
        self.add("gguf.load_unload.card_growth_mb", result, "MB", lambda: result["card"] / 1e6)


def difference(path: str, expected_path: str) -> float:
    """Relative difference of two pictures (latents), 2-norm."""
    import torch

    picture, expected = torch.load(path), torch.load(expected_path)
    return ((picture - expected).norm() / expected.norm()).item()


def work(options: argparse.Namespace) -> None:
    """A process's life: imports, then the job that comes on standard input; its result goes to standard output."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    if options.dynamic:
        import comfy_aimdo.control

        comfy_aimdo.control.init(nvml_pressure=True)
    import cuda_malloc  # noqa: F401  ComfyUI's choice of allocator, before torch
    import diffusers.models.transformers.transformer_flux  # noqa: F401  takes seconds
    import torch

    assert not torch.cuda.is_initialized()  # the card belongs to the run before
    job = json.loads(sys.stdin.readline())
    report.import_comfyui()
    if options.dynamic:
        report.turn_on_dynamic_vram()
    report.import_pack()
    result = {"write": write, "sample": sample, "cycle": cycle}[job["do"]](job, options.tiny)
    print(json.dumps(result))


def hold() -> None:
    """Answers on standard input: a number of bytes or null, hold all but that; 'lowest', the least free since."""
    import torch

    if not torch.cuda.is_available():
        for _ in sys.stdin:
            print("NaN", flush=True)
        return
    torch.zeros(1, device="cuda")  # this process's own context is no part of the cap
    at_first, _ = torch.cuda.mem_get_info()
    lowest, held = at_first, None

    def watch() -> None:
        nonlocal lowest
        while True:
            lowest = min(lowest, torch.cuda.mem_get_info()[0])
            time.sleep(WATCH)

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        question = json.loads(line)
        if question == "lowest":
            print(lowest, flush=True)
            continue
        held = None
        torch.cuda.empty_cache()
        deadline = time.perf_counter() + 10
        while torch.cuda.mem_get_info()[0] < at_first - RELEASED and time.perf_counter() < deadline:
            time.sleep(0.05)  # until the last run's memory is given back
        if question is not None:
            held = torch.empty(int(torch.cuda.mem_get_info()[0] - question), dtype=torch.uint8, device="cuda")
        lowest, _ = torch.cuda.mem_get_info()
        print(lowest, flush=True)
    del held


def write(job: Result, tiny: bool) -> Result:
    """A file of random blocks."""
    from kontextkit.devtools.flux_shapes import bfl_shapes
    from random_files import FULL, TINY, mixed, write_gguf

    sizes, mix = TINY if tiny else FULL, job["name"]
    if mix == "quarter":
        sizes, mix = sizes if tiny else sizes | QUARTER, SLOWED
    write_gguf(Path(job["path"]), mixed(bfl_shapes(**sizes), mix))
    return {}


class Run:
    """A MODEL from the pack's loader, and what samples it."""

    def __init__(self, job: Result, tiny: bool):
        import torch
        from kontextkit.bridge.model import load
        from random_files import FULL, TINY

        sizes, generator = TINY if tiny else FULL, torch.Generator().manual_seed(0)
        latent = (1, 16, job["side"], job["side"])
        self.patcher = load(job["path"])
        self.noise, reference = (torch.randn(latent, generator=generator) for _ in range(2))
        context = torch.randn(1, 512, sizes["text"], generator=generator)
        pooled = torch.randn(1, sizes["pooled"], generator=generator)
        values = {"pooled_output": pooled, "guidance": 2.5, "reference_latents": [reference]}
        self.conditioning = [[context, values]]

    def sample(self, n_steps: int) -> tuple[Any, list[float]]:
        """Picture (latent) and seconds of each step, the first with all that goes before it."""
        import comfy.sample
        import torch

        times = [time.perf_counter()]

        def after_step(*_: object) -> None:
            report.synchronize()
            times.append(time.perf_counter())

        with torch.inference_mode():
            picture = comfy.sample.sample(
                self.patcher, self.noise, n_steps, 1.0, "euler", "simple", self.conditioning, self.conditioning,
                torch.zeros_like(self.noise), callback=after_step, disable_pbar=True, seed=0,
            )  # fmt: skip
        end_of_node()
        return picture, [after - before for before, after in pairwise(times)]


def end_of_node() -> None:
    """What ComfyUI's execution.py does after each node where dynamic VRAM is on."""
    import comfy.memory_management

    if comfy.memory_management.aimdo_enabled:
        import comfy.model_management
        import comfy.model_prefetch
        import comfy_aimdo.model_vbar

        comfy.model_management.reset_cast_buffers()
        comfy.model_prefetch.cleanup_prefetch_queues()
        comfy_aimdo.model_vbar.vbars_reset_watermark_limits()


def sample(job: Result, tiny: bool) -> Result:
    """Two samplings: the first loads and warms up, the second is timed."""
    import comfy.model_management as management
    import torch
    from comfy.patcher_extension import WrappersMP

    run = Run(job, tiny)
    if not job["prefetch"]:
        run.patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, without_prefetch)
    _, warm_up = run.sample(2)
    picture, seconds = run.sample(N_STEPS)
    if not torch.isfinite(picture).all():
        raise ValueError("the picture is not finite")
    torch.save(picture.cpu(), job["picture"])
    there, size, step = run.patcher.loaded_size(), run.patcher.model_size(), statistics.median(seconds[1:])
    pinned, reserved = management.TOTAL_PINNED_MEMORY, torch.cuda.max_memory_reserved()
    note = (
        f"{1e3 * step:.0f} ms a step ({1e3 * min(seconds[1:]):.0f} to {1e3 * max(seconds[1:]):.0f}), "
        f"{warm_up[0]:.1f} s the first; {min(there, size) / GB:.1f} of {size / GB:.1f} GB of weights on the card, "
        f"{pinned / GB:.1f} GB of host memory pinned, {reserved / GB:.1f} GB reserved by torch"
    )
    return {"step": step, "note": note}


def without_prefetch(forward: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """A wrapper of the diffusion model, whose eighth argument is ComfyUI's transformer_options."""
    *others, options = arguments
    return forward(*others, options | {"prefetch_dynamic_vbars": False}, **more)


def cycle(job: Result, tiny: bool) -> Result:
    """Growth of host and card memory from the second of N_LOADS + 1 rounds of loading, sampling and unloading."""
    import comfy.model_management as management
    import torch
    from loading import memory

    host, card, begin = [], [], time.perf_counter()
    for _ in range(N_LOADS + 1):
        run = Run(job, tiny)
        run.sample(1)
        management.unload_all_models()
        del run
        gc.collect()
        management.soft_empty_cache()
        host.append(memory("RssAnon") + memory("RssShmem"))
        card.append(-torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.nan)
    note = (
        f"after {N_LOADS} rounds of loading a quarter of {SLOWED}'s blocks, a step in {QUARTER_CAP} GB and unloading, "
        f"the first left out, {(time.perf_counter() - begin) / len(host):.1f} s each; at the most in between "
        f"host {(max(host[1:]) - host[0]) / 1e6:.1f} MB, card {(max(card[1:]) - card[0]) / 1e6:.1f} MB"
    )
    return {"host": host[-1] - host[0], "card": card[-1] - card[0], "note": note}


if __name__ == "__main__":
    main()
