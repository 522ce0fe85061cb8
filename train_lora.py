"""Trains a LoRA for FLUX.1 Kontext on a folder of edits; needs ComfyUI's Python environment.

    python train_lora.py EDITS NAME.safetensors --demo
    python train_lora.py EDITS NAME.safetensors --model flux1-kontext-dev-Q4_K_M.gguf --clip-l clip_l.safetensors
        --t5xxl t5xxl_fp8_e4m3fn.safetensors --vae ae.safetensors

In the folder EDITS an edit NAME is three files: NAME.txt, the instruction; NAME_ref.png, the picture before (more
references: NAME_ref2.png to NAME_ref9.png); NAME.png, the picture after. Pictures are .png, .jpg, .jpeg or .webp, those
of an edit of one size, their sides multiples of 16 pixels.

With --distil N the LoRA does not learn the edits: it learns to make in N steps what the model makes of such prompts and
pictures in many (a Lightning LoRA). Take --guidance as you will sample.

Beside the LoRA its loss curve is drawn (NAME_loss.png). A training that was stopped goes on when the same command is
given again. To use the LoRA, put it into models/loras and load it with the node Load Kontext LoRA.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from demo.train import import_pack

ROOT = Path(__file__).resolve().parent
FILES = {
    "model": "the transformer, .gguf or .safetensors",
    "clip_l": "the text encoder CLIP-L",
    "t5xxl": "the text encoder T5-XXL, .gguf or .safetensors",
    "vae": "FLUX.1's autoencoder",
}
WHOLE = {
    "rank": "of the LoRA",
    "alpha": "alpha / rank scales the LoRA",
    "steps": "to train",
    "batch": "edits a step",
    "seed": "of all that is random",
    "distil": "steps that shall do to sample: a Lightning LoRA; 0 learns the edits themselves",
}
REAL = {
    "dropout": "share of its inputs left out",
    "rate": "AdamW's",
    "guidance": "that the model reads; with --distil the one to sample with, 2.5 of FLUX.1 Kontext",
}


def main() -> None:
    """Command line."""
    import_pack()
    from kontextkit.engine.training.lora import Settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edits", type=Path, help="the folder of edits")
    parser.add_argument("out", type=Path, help="the LoRA to write, .safetensors")
    parser.add_argument("--demo", action="store_true", help="train on the small model that ships with the pack")
    for name, words in FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="FILE", help=words)
    for kind, settings in ((int, WHOLE), (float, REAL)):
        for name, words in settings.items():
            default = getattr(Settings, name)
            parser.add_argument(f"--{name}", type=kind, default=default, help=f"{words} (default {default:g})")
    options = parser.parse_args()
    missing = [f"--{name.replace('_', '-')}" for name in FILES if getattr(options, name) is None]
    if missing and not options.demo:
        parser.error(f"expected --demo, or all files of a model; missing: {', '.join(missing)}")
    if options.demo and len(missing) < len(FILES):
        parser.error("expected either --demo or the files of a model, got both")
    use_comfyui(parser)
    begin = time.perf_counter()
    try:
        train(options, Settings(**{name: getattr(options, name) for name in (*WHOLE, *REAL)}), begin)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: stopped; give the same command again to go on from the last checkpoint")


def train(options: argparse.Namespace, settings: Any, begin: float) -> None:
    """By the pack, with ComfyUI importable. begin: of the seconds before every line."""
    from kontextkit.bridge.training import DEMO, demo_encoders, flux_encoders, train_lora

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {text}", flush=True)

    model, encoders = DEMO, demo_encoders
    if not options.demo:
        model, encoders = options.model, partial(flux_encoders, options.clip_l, options.t5xxl, options.vae)
    train_lora(options.edits, options.out, model, encoders, settings, say)
    say(f"wrote {options.out}")


def use_comfyui(parser: argparse.ArgumentParser) -> None:
    """Makes ComfyUI importable, the one around the pack or in $COMFYUI_PATH.

    It takes this folder's place on the path, whose nodes/ would hide ComfyUI's own.
    """
    comfyui = Path(os.environ.get("COMFYUI_PATH", ROOT.parent.parent)).resolve()
    if not (comfyui / "main.py").is_file():
        parser.error(f"there is no ComfyUI in {comfyui}; set COMFYUI_PATH to the folder of one")
    sys.path[0] = str(comfyui)
    import torch
    from comfy.cli_args import args

    args.cpu = not (torch.cuda.is_available() or torch.backends.mps.is_available())


if __name__ == "__main__":
    main()
