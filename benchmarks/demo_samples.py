"""What the demo model makes of the first held-out edits of every kind: docs/demo_samples.jpg, none chosen by hand.

    COMFYUI_PATH=... python benchmarks/demo_samples.py [--out FILE]

A row an edit: its prompt, its references, what the model made, and the picture that is right.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import report
import torch
from held_out import Editor, Settings, held_out, image, truth
from PIL import Image, ImageDraw
from torch import Tensor

EACH, SIDE, LINE, MOST = 2, 160, 18, 3  # edits a kind; pixels; pixels of a line of text; references
COLUMNS = MOST + 2


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=report.ROOT / "docs" / "demo_samples.jpg")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    editor = Editor(at_once=1)
    rows = []
    with torch.inference_mode():
        for edits in held_out(100).values():
            for edit in edits[:EACH]:
                (success,), (likeness,), made = editor.judge([edit], Settings())
                right, references = truth([edit], (256, 256))
                verdict = f"{'success' if success else 'failure'}, SSIM {likeness:.3f}"
                rows.append(row(f"{edit.prompt}: {verdict}", references, made, right))
    sheet = Image.new("RGB", (2 * COLUMNS * SIDE + 20, len(rows) // 2 * (SIDE + LINE)), "white")
    for i, picture in enumerate(rows):
        sheet.paste(picture, (i % 2 * (COLUMNS * SIDE + 20), i // 2 * (SIDE + LINE)))
    sheet.save(options.out, quality=90)


def row(text: str, references: list[Tensor], made: Tensor, right: Tensor) -> Image.Image:
    """One edit: references, result, truth."""
    picture = Image.new("RGB", (COLUMNS * SIDE, SIDE + LINE), "white")
    ImageDraw.Draw(picture).text((2, 3), text, fill="black")
    for i, one in [*enumerate(references), (MOST, made), (MOST + 1, right)]:
        picture.paste(image(one[0]).resize((SIDE - 4, SIDE - 4), Image.Resampling.BOX), (i * SIDE + 2, LINE))
    return picture


if __name__ == "__main__":
    main()
