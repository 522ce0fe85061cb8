"""The optimizer's benchmarks: in full on a card, small ones on the CPU."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from .environment import ROOT, say

RESULTS = ROOT / ".dev" / "bench"
FOR_HOPPER = "nvidia-cudnn-frontend==1.32.0"  # attention in FP8; what it depends on is large and not needed
PARTS = ("main", "probes", "peers", "torch_compile")  # of optimize_steps.py, on a card


def main() -> None:
    """Command line: --comfyui FOLDER. Results lie in RESULTS; those of benchmarks/results stay as they are."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environment = os.environ | {"COMFYUI_PATH": str(options.comfyui)}
    if on_card := torch.cuda.is_available():
        install_for_hopper()
    same_map = ["--quality", str(RESULTS / "optimize_quality.json")]
    for script, more in {
        "optimize_quality": ["--edits", "60"] if on_card else ["--tiny"],
        "optimize_steps": ["--parts", *PARTS, *same_map] if on_card else ["--tiny", *same_map],
        "fast_steps": same_map if on_card else ["--tiny", *same_map],
    }.items():
        say(f"benchmarks/{script}.py {' '.join(more)}")
        out = RESULTS / f"{script}.json"
        command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--out", str(out), *more]
        subprocess.run(command, env=environment, check=True)
        say(f"results: {out}")


def install_for_hopper() -> None:
    """The package without which preset fast attends exactly; where it cannot be had, that is what is measured."""
    if find_spec("cudnn") is None:
        say(f"installing {FOR_HOPPER}")
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", sys.executable]
        if subprocess.run([*command, FOR_HOPPER]).returncode:
            say("it could not be installed, so attention is exact")


if __name__ == "__main__":
    main()
