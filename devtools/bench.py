"""The optimizer's benchmarks: in full on a card, small ones on the CPU."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path

from .environment import ROOT, say

RESULTS = ROOT / ".dev" / "bench"


def main() -> None:
    """Command line: --comfyui FOLDER. Results lie in RESULTS; those of benchmarks/results stay as they are."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    environment = os.environ | {"COMFYUI_PATH": str(options.comfyui)}
    small = [] if torch.cuda.is_available() else ["--tiny"]
    quality, steps = RESULTS / "optimize_quality.json", RESULTS / "optimize_steps.json"
    for script, out, more in (
        ("optimize_quality", quality, []),
        ("optimize_steps", steps, ["--quality", str(quality)]),
        ("fast_steps", RESULTS / "fast_steps.json", []),
    ):
        say(f"benchmarks/{script}.py {' '.join(small)}")
        command = [sys.executable, str(ROOT / "benchmarks" / f"{script}.py"), "--out", str(out), *small, *more]
        subprocess.run(command, env=environment, check=True)
        say(f"results: {out}")


if __name__ == "__main__":
    main()
