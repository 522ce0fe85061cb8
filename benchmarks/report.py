"""What every benchmark does before and after measuring: load the pack, write the rows with where they come from."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
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


def row(
    name: str, measured: float, unit: str, note: str = "", goal: float | None = None, better: str = "lower"
) -> dict[str, Any]:
    """One result."""
    digits = float(f"{measured:.5g}")
    return {"name": name, "measured": digits, "goal": goal, "unit": unit, "better": better, "note": note}


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
    path.write_text(json.dumps(report, indent=1) + "\n")
    for row in rows:
        print(f"{row['name']:42} {row['measured']:>12.4g} {row['unit']:8} {row['note']}")
