"""Measures what a setting of FLUX.1 Kontext does to pictures; needs ComfyUI's Python environment.

    python quality_lab.py OUT steps --demo
    python quality_lab.py OUT "cache threshold" --model flux1-kontext-dev-Q4_K_M.gguf --clip-l clip_l.safetensors
        --t5xxl t5xxl_fp8_e4m3fn.safetensors --vae ae.safetensors --picture photo.png --prompt "make it night"

Every picture is made with every value of the setting, from the same noise, and compared (SSIM) with the one that
nothing changed. OUT.md has the table, OUT.csv and OUT.json all figures, OUT_sheet.png the pictures that changed most
side by side, OUT_plot.png quality against time, where matplotlib is installed.

Every --prompt is tried on the --picture, which may be given several times: the first is edited, the others are further
references. With --demo and no picture, --edits held-out edits of its world are made instead, and also compared with the
pictures that are right. For precision, --values are model files (with --demo, its precisions).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

from demo.train import import_pack
from train_lora import FILES, use_comfyui

SETTINGS = ("precision", "steps", "guidance", "denoise", "context weight", "cache threshold")
DEMO_GUIDANCE, GUIDANCE = 1.0, 2.5  # FLUX.1 Kontext's own
SIDE = 256  # pixels, of the demo's pictures


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="what the files are called, without an ending")
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--values", default="", help="to try, with commas between (default: those of the user's guide)")
    parser.add_argument("--demo", action="store_true", help="on the small model that ships with the pack")
    for name, words in FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, metavar="FILE", help=words)
    parser.add_argument(
        "--picture", type=Path, action="append", default=[], help="to edit; sides multiples of 16 pixels"
    )
    parser.add_argument("--prompt", action="append", default=[], help="an instruction")
    parser.add_argument("--edits", type=int, default=16, help="held-out edits of the demo's world (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default 0)")
    parser.add_argument("--seeds", type=int, default=1, help="of every prompt (default 1)")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--guidance", type=float, help=f"(default {GUIDANCE}, with --demo {DEMO_GUIDANCE})")
    parser.add_argument("--sampler", default="euler")
    parser.add_argument("--scheduler", default="simple")
    options = parser.parse_args()
    missing = [f"--{name.replace('_', '-')}" for name in FILES if getattr(options, name) is None]
    if missing and not options.demo:
        parser.error(f"expected --demo, or all files of a model; missing: {', '.join(missing)}")
    if options.demo and len(missing) < len(FILES):
        parser.error("expected either --demo or the files of a model, got both")
    if bool(options.picture) != bool(options.prompt) or not (options.demo or options.picture):
        parser.error("expected at least one --picture and one --prompt")
    if min(options.edits, options.seeds, options.steps) < 1:
        parser.error("--edits, --seeds and --steps are at least 1")
    import_pack()
    from kontextkit.engine.lab.settings import parse_values

    begin = time.perf_counter()
    try:
        values = parse_values(options.setting, options.values)
        use_comfyui(parser)
        measure(options, values, begin)
    except (ValueError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{parser.prog}: stopped; nothing was written")


def measure(options: argparse.Namespace, values: Any, begin: float) -> None:
    """By the pack, with ComfyUI importable. begin: of the seconds before every line."""
    import torch
    from comfy.samplers import KSampler
    from kontextkit.bridge.demo import load_demo
    from kontextkit.bridge.model import load
    from kontextkit.bridge.quality_lab import QualityLab, edit_of
    from kontextkit.bridge.training import flux_encoders
    from kontextkit.bridge.ways import Way, file_of
    from kontextkit.engine.lab.plot import MISSING, can_plot
    from kontextkit.engine.lab.table import markdown
    from kontextkit.engine.training.triples import read_picture

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {text}", flush=True)

    for name, known in (("sampler", KSampler.SAMPLERS), ("scheduler", KSampler.SCHEDULERS)):
        if getattr(options, name) not in known:  # ComfyUI would take another without a word
            raise ValueError(f"--{name} is {getattr(options, name)!r}, expected one of {', '.join(known)}")
    find = file_of
    if options.setting == "precision":
        files = {Path(value).name: Path(value) for value in values if Path(value).is_file()}
        values = tuple(Path(value).name if Path(value).is_file() else value for value in values)
        find = lambda name: files[name] if name in files else file_of(name)  # noqa: E731
    guidance = options.guidance if options.guidance is not None else DEMO_GUIDANCE if options.demo else GUIDANCE
    with torch.inference_mode():
        if options.demo:
            model, clip, vae = load_demo("BF16")
        else:
            model, (clip, vae) = load(options.model), flux_encoders(options.clip_l, options.t5xxl, options.vae)
        if options.picture:
            pictures = [read_picture(path)[None] for path in options.picture]
            edits = [edit_of(prompt, pictures, guidance, clip, vae) for prompt in dict.fromkeys(options.prompt)]
        else:
            edits = [edit_of(guidance=guidance, clip=clip, vae=vae, **edit) for edit in held_out(options.edits)]
        way = Way(model, options.steps, options.sampler, options.scheduler, find=find)
        seeds = range(options.seed, options.seed + options.seeds)
        lab = QualityLab(options.setting, values, way, edits, seeds, vae, say)
        sweep = lab.run()
    print(markdown(sweep))
    for path in lab.save(options.out):
        say(f"wrote {path}")
    if not can_plot():
        say(MISSING)


def held_out(n: int) -> list[dict[str, Any]]:
    """n edits of all kinds in turns, which the demo model was not trained on, as `edit_of` wants them; 256x256."""
    from kontextkit.demo.training.draw import draw
    from kontextkit.demo.training.edits import KINDS, random_edit

    kinds = [(kind, Random(f"held out {kind}")) for number, some in KINDS.items() if number for kind in some]
    edits = []
    for i in range(n):
        edit = random_edit(*kinds[i % len(kinds)])
        pixels = (draw((edit.result, *edit.references), SIDE, SIDE) * 255).round() / 255  # as files have them
        right, *references = pixels.split(1)
        shown = [picture.movedim(1, -1) for picture in references]
        edits.append({"prompt": edit.prompt, "references": shown, "name": f"{i + 1}: {edit.prompt}", "right": right})
    return edits


if __name__ == "__main__":
    main()
