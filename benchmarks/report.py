"""What every benchmark does before and after measuring: load the pack, write the rows with where they come from."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def import_comfyui() -> None:
    """ComfyUI from $COMFYUI_PATH in this process, on the CPU where there is no card."""
    import torch

    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    import comfy.cli_args

    comfy.cli_args.args.cpu = not torch.cuda.is_available()


def turn_on_dynamic_vram() -> None:
    """As ComfyUI's main.py does, after `comfy_aimdo.control.init()` and ComfyUI's import. Exits where it cannot."""
    import comfy.cli_args
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher
    import comfy_aimdo.control

    headroom = int(comfy.cli_args.args.vram_headroom * 1024**3)
    devices = [(device.index, headroom) for device in comfy.model_management.get_all_torch_devices()]
    if comfy.cli_args.args.cpu or not comfy_aimdo.control.init_devices(devices):
        sys.exit("dynamic VRAM is not to be had here")
    comfy_aimdo.control.set_log_error()
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def import_pack() -> None:
    """This checkout, whatever its folder is called, as the package `kontextkit`."""
    door, rooms = ROOT / "__init__.py", [str(ROOT)]
    spec = importlib.util.spec_from_file_location("kontextkit", door, submodule_search_locations=rooms)
    sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)


def parser(page: str | None, result: str) -> argparse.ArgumentParser:
    """A command line that explains itself by the script's docstring and may put its result elsewhere."""
    options = argparse.ArgumentParser(description=page, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=RESULTS / result)
    return options


def parser_of_edits(page: str | None, result: str, n_edits: int) -> argparse.ArgumentParser:
    """`parser`, for what a setting does to pictures."""
    options = parser(page, result)
    options.add_argument("--tiny", action="store_true", help="few edits, steps and settings, to try the script")
    options.add_argument("--edits", type=int, default=n_edits)
    options.add_argument("--minutes", type=float, default=9.0, help="after which the rest is left out")
    options.add_argument("--plot", action="store_true", help="only draw what was measured before")
    return options


def variant(parser: argparse.ArgumentParser, options: argparse.Namespace, *names: str) -> None:
    """A variant's result lies beside the usual one, under its own name, unless --out says otherwise."""
    if names and options.out == parser.get_default("out"):
        options.out = options.out.with_stem("_".join((options.out.stem, *names)))


def tiny_variant(options: argparse.Namespace) -> None:
    """A tiny model's result is nobody's: it lies under .dev, unless --out says otherwise."""
    if options.tiny and options.out.parent == RESULTS:
        options.out = ROOT / ".dev" / "bench" / options.out.name


@contextmanager
def folder(options: argparse.Namespace) -> Iterator[Path]:
    """Where large files lie: --folder, which keeps them for the next script, or one that goes with the run."""
    with tempfile.TemporaryDirectory() as passing:
        if options.folder:
            options.folder.mkdir(parents=True, exist_ok=True)
        yield options.folder or Path(passing)


@contextmanager
def private_caches(cold: bool) -> Iterator[None]:
    """A user folder for this run alone, where compiled blocks are kept; cold: one for Inductor's own cache too.

    After ComfyUI's import.
    """
    import folder_paths

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as passing:
        folder_paths.set_user_directory(str(Path(passing, "user")))
        if cold:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(passing, "inductor"))
        yield


def row(
    name: str, measured: float, unit: str, note: str = "", goal: float | None = None, better: str = "lower"
) -> dict[str, Any]:
    """One result."""
    digits = float(f"{measured:.5g}")
    return {"name": name, "measured": digits, "goal": goal, "unit": unit, "better": better, "note": note}


def failed(name: str, unit: str, reason: str, goal: float | None = None) -> dict[str, Any]:
    """The row of a measurement that came to nothing."""
    return row(name, 0, unit, reason, goal) | {"measured": None}


def synchronize() -> None:
    """Wait for the card, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def in_turns(steps: dict[Any, Callable[[], Any]], turns: int = 8, warm_up: int = 3) -> dict[Any, list[float]]:
    """Seconds of each step, by its key, all taken in turns, the first `warm_up` rounds left out."""
    seconds: dict[Any, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + turns):
        for name, step in steps.items():
            synchronize()
            begin = time.perf_counter()
            step()
            synchronize()
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def write(path: Path, rows: list[dict[str, Any]], script: str, *options: str) -> None:
    """The rows as one JSON file, and as a table on the screen."""
    save(path, rows, script, *options)
    show(rows)


def show(rows: list[dict[str, Any]], notes: bool = True) -> None:
    """The rows as a table on the screen, the goal beside what was measured."""
    print(f"{'':42} {'measured':>12} {'goal':>8}")
    for row in rows:
        measured = "failed" if row["measured"] is None else f"{row['measured']:.4g}"
        goal = "" if row["goal"] is None else f"{row['goal']:.4g}"
        figures = f"{row['name']:42} {measured:>12} {goal:>8} {row['unit']:8}"
        print(f"{figures} {row['note'] if notes else ''}".rstrip())


def save(path: Path, rows: list[dict[str, Any]], script: str, *options: str) -> None:
    """The rows as one JSON file."""
    import comfyui_version
    import diffusers
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "comfyui": comfyui_version.__version__}
    report = {
        "device": device,
        "versions": versions,
        "command": " ".join(["python", f"benchmarks/{script}", *options]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_text(report))


def as_text(report: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    head = json.dumps(report | {"rows": []}, indent=1).removesuffix("[]\n}")
    return head + "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in report["rows"]) + "\n ]\n}\n"
