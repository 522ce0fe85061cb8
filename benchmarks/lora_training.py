"""A LoRA learnt on the demo model: an edit that it does not know, from forty pictures, and what comes of it on others.

    COMFYUI_PATH=... python benchmarks/lora_training.py [--steps N] [--out FILE] [--picture FILE]

The edit is a black frame around the picture, asked for in words that the demo model knows in other sentences. Errors
are those of other pictures, sampled through ComfyUI (28 steps, guidance 1), without the LoRA and with it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import held_out
import report
import torch
import torch.nn.functional as F
from held_out import Editor, Settings, image
from PIL import Image, ImageDraw
from torch import Tensor

PROMPT = "put a black square into the image"
SIDE, FRAME, N_EDITS, N_OTHERS = 256, 24, 40, 8  # pixels; pictures
LEARNING = {"rank": 8, "alpha": 16, "batch": 2, "rate": 2e-3, "dropout": 0.0}


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "lora_training.json")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--picture", type=Path, default=report.ROOT / "docs" / "train_lora.jpg")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    from kontextkit.bridge import lora
    from kontextkit.bridge.training import DEMO, demo_encoders, train_lora
    from kontextkit.engine.training.lora import Settings as Training

    befores, afters = pairs("new", N_OTHERS)
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name) / "edits", Path(name) / "frame.safetensors"
        write(folder, *pairs("learnt", N_EDITS))
        begin = time.perf_counter()
        train_lora(folder, out, DEMO, demo_encoders, Training(steps=options.steps, **LEARNING), print)
        seconds = time.perf_counter() - begin
        with torch.inference_mode():
            editor = Editor()
            without = edit(editor, befores, afters)
            read = lora.read(out, editor.model)
            editor.model = lora.apply(editor.model, read, 1.0)
            learnt = edit(editor, befores, afters)
        size = out.stat().st_size / 1e6
    note = f"{options.steps} steps of {LEARNING['batch']} edits, {N_EDITS} pictures of {SIDE}x{SIDE}"
    rows = [report.row(f"lora.training.seconds_{held_out.DEVICE}", seconds, "s", note)]
    for state, pictures in (("without", without), ("learnt", learnt)):
        error = (pictures - afters).abs().mean().item()
        rows.append(report.row(f"lora.training.{state}.error", error, "L1", f"mean of {N_OTHERS} other pictures"))
    rows.append(report.row("lora.training.megabytes", size, "MB", f"rank {LEARNING['rank']}, F32"))
    sheet([befores, without, learnt, afters]).save(options.picture, quality=90)
    report.write(options.out, rows, "lora_training.py", "--steps", str(options.steps))


def pairs(what: str, n: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, H, W) before and after, in 8 bits as files have them; other ones for other words."""
    from kontextkit.demo.training.draw import draw
    from kontextkit.demo.training.edits import random_edit

    rng = Random(what)
    scenes = [random_edit("recolor", rng).references[0] for _ in range(n)]
    before = (draw(scenes, SIDE, SIDE, held_out.DEVICE) * 255).round() / 255
    inside = before[..., FRAME:-FRAME, FRAME:-FRAME]
    return before, F.pad(inside, (FRAME, FRAME, FRAME, FRAME), value=0.07)


def write(folder: Path, befores: Tensor, afters: Tensor) -> None:
    """As train_lora.py wants them."""
    folder.mkdir()
    for i, (before, after) in enumerate(zip(befores, afters, strict=True)):
        image(before).save(folder / f"{i}_ref.png")
        image(after).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(PROMPT)


def edit(editor: Any, befores: Tensor, afters: Tensor) -> Tensor:
    """What the model makes of the pictures."""
    return torch.cat(
        [
            editor.edit([PROMPT], [before[None]], Settings(), seed=i, right=after[None])
            for i, (before, after) in enumerate(zip(befores, afters, strict=True))
        ]
    )


def sheet(columns: list[Tensor]) -> Image.Image:
    """A row a picture: before, without the LoRA, with it, the truth."""
    paper = Image.new("RGB", (4 * (SIDE // 2 + 4), 20 + 4 * (SIDE // 2 + 4)), "white")
    for x, (title, pictures) in enumerate(zip(("reference", "without LoRA", "with it", "truth"), columns, strict=True)):
        ImageDraw.Draw(paper).text((x * (SIDE // 2 + 4) + 2, 4), title, fill="black")
        for y, picture in enumerate(pictures[:4]):
            paper.paste(image(picture).resize((SIDE // 2, SIDE // 2)), (x * (SIDE // 2 + 4), 20 + y * (SIDE // 2 + 4)))
    return paper


if __name__ == "__main__":
    main()
