"""Edits of the demo model's world as files, as train_lora.py wants them.

    python demo/write_edits.py FOLDER N [--seed S]

Of all kinds in the shares of training; 256x256.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

from train import import_pack

SIDE = 256


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made where it is missing; may hold no files")
    parser.add_argument("n", type=int, help="edits")
    parser.add_argument("--seed", default="0")
    options = parser.parse_args()
    import_pack()
    options.folder.mkdir(parents=True, exist_ok=True)
    if any(options.folder.iterdir()):
        parser.error(f"{options.folder} is not empty; choose another folder")
    write_edits(options.folder, options.n, Random(options.seed))
    print(f"{options.n} edits in {options.folder}")


def write_edits(folder: Path, n: int, rng: Random) -> None:
    """NAME.txt, NAME.png and NAME_ref.png, NAME_ref2.png, ... for each."""
    from kontextkit.demo.training.draw import draw
    from kontextkit.demo.training.edits import KINDS, random_edit
    from kontextkit.demo.training.pool import SHARES
    from PIL import Image

    numbers = [number for number in SHARES if number]
    for i in range(n):
        (number,) = rng.choices(numbers, [SHARES[number] for number in numbers])
        edit = random_edit(rng.choice(KINDS[number]), rng)
        pixels = (draw((edit.result, *edit.references), SIDE, SIDE) * 255).round().byte().movedim(1, -1).numpy()
        names = ["", "_ref", *(f"_ref{k}" for k in range(2, number + 1))]
        for name, picture in zip(names, pixels, strict=True):
            Image.fromarray(picture).save(folder / f"{i}{name}.png")
        (folder / f"{i}.txt").write_text(edit.prompt)


if __name__ == "__main__":
    main()
