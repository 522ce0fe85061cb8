"""Quantizes a FLUX.1 Kontext safetensors file to GGUF.

    python -m engine.quantizer SOURCE QTYPE [TARGET] [--lora FILE] [--strength S]

run from the pack's folder, in ComfyUI's Python. SOURCE: a .safetensors file, or the .index.json of one in several.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from ..errors import CheckpointError, QuantizeError
from ..pace import Pace
from .mixes import MIXES
from .run import quantize
from .source import find_parts, stem_of


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.quantizer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("qtype", choices=MIXES)
    parser.add_argument("target", type=Path, nargs="?", help="default: beside SOURCE, its name with QTYPE and .gguf")
    parser.add_argument("--lora", type=Path, action="append", default=[], help="merged first; may stand several times")
    parser.add_argument("--strength", type=float, action="append", default=[], help="of each --lora, in order; 1")
    options = parser.parse_args()
    if len(options.strength) > len(options.lora):
        parser.error("--strength stands more often than --lora; give one for each, in order")
    strengths = options.strength + [1.0] * (len(options.lora) - len(options.strength))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pace = Pace(options.qtype)

    def show(done: int, total: int) -> None:
        if text := pace.text(done, total):
            print(f"\r{text:70}", end="", flush=True)

    try:
        folder = find_parts(options.source)[0].parent
        target = options.target or folder / f"{stem_of(options.source)}-{options.qtype}.gguf"
        loras = tuple(zip(options.lora, strengths, strict=True))
        done = quantize(options.source, options.qtype, target, loras, show, device)
    except (CheckpointError, QuantizeError) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped; nothing was written")
    print(f"\n{done.report()}")


if __name__ == "__main__":
    main()
