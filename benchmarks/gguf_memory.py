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
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import report
from memory_run import GB, SLOWED, Result

PEAKS = [("Q3_K_M", 512, 6), ("Q4_K_M", 768, 8), ("Q5_K_M", 768, 10)]  # type, pixels a side, GB of the card
CAPS = [6, 8, 10, 12, 16, 24]
PIXELS = 768
QUARTER_CAP = 3  # GB: room for half of the quarter of a model that is loaded and unloaded


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "gguf_memory.json")
    parser.add_argument("--dynamic", action="store_true", help="ComfyUI's dynamic VRAM in place of its low-VRAM path")
    parser.add_argument("--no-prefetch", action="store_true", help="dynamic VRAM without the prefetch of whole blocks")
    parser.add_argument("--only", choices=["caps", "slow_down", "load"])
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--seconds", type=float, default=90, help="after which a run counts as failed")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    options = parser.parse_args()
    report.variant(parser, options, *["dynamic"] * options.dynamic, *["no_prefetch"] * options.no_prefetch)
    with report.folder(options) as folder, Bench(options, folder) as bench:
        parts = {"caps": bench.caps, "slow_down": bench.slow_down, "load": bench.load}
        for name, part in parts.items():
            if options.only in (None, name):
                part()
    report.import_comfyui()
    given = ["--dynamic"] * options.dynamic + ["--no-prefetch"] * options.no_prefetch
    given += ["--only", options.only] if options.only else []
    report.write(options.out, bench.rows, "gguf_memory.py", *given)


class Process:
    """memory_run.py: it imports what it can and waits for its job, or holds the card's memory."""

    def __init__(self, options: list[str]):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  the process outlives this function
        command = [sys.executable, str(report.ROOT / "benchmarks" / "memory_run.py"), *options]
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
        assert self.popen.stdin
        assert self.popen.stdout
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
        self.holder, self.next = Process(["--hold"]), self.start(self.options.dynamic)
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
        answer = self.start(False).run({"do": "write", "name": name, "path": self.path_of(name)}, 300)
        if "failed" in answer:
            sys.exit(f"{name}: no file: {answer['failed']}")

    def path_of(self, name: str) -> str:
        """A type's file, or the quarter's."""
        return str(self.folder / f"{name}.gguf")

    def start(self, dynamic: bool) -> Process:
        """A process for the next job."""
        return Process(["--tiny"] * self.options.tiny + ["--dynamic"] * dynamic)

    def run(self, name: str, pixels: int, cap: float | None, do: str = "sample") -> Result:
        """One run with `cap` GB of the card, or all of it; the same run is not made twice."""
        key = (name, pixels, cap, do)
        if key in self.done:
            return self.done[key]
        free = self.holder.ask(None if cap is None else cap * GB)
        process, self.next = self.next, self.start(self.options.dynamic)
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


if __name__ == "__main__":
    main()
