"""Makes the demo model anew.

    python demo/train.py FOLDER             one card
    torchrun --nproc-per-node N demo/train.py FOLDER
    python demo/train.py FOLDER --start demo   goes on from the exported files in demo/
    python demo/train.py FOLDER --start demo --guidance   guidance alone, on a CPU
    python demo/train.py FOLDER --smoke     a few steps of a tiny model, to try the script

Stages already in FOLDER are skipped or gone on with. The files that ship come to lie in FOLDER/export.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--smoke", action="store_true", help="a few steps of a tiny model")
    parser.add_argument("--start", type=Path, metavar="EXPORTED", help="the folder with files to go on from")
    parser.add_argument("--guidance", action="store_true", help="with --start: guidance alone; edits stay as they are")
    options = parser.parse_args()
    if options.guidance and not options.start:
        parser.error("--guidance goes on from exported files; name their folder with --start")
    import_pack()
    from kontextkit.demo.training.recipe import GOING_ON, GUIDANCE, SMOKE, Recipe
    from kontextkit.demo.training.run import Run

    going_on = GUIDANCE if options.guidance else GOING_ON
    recipe = SMOKE if options.smoke else going_on if options.start else Recipe()
    Run(recipe, options.folder).all(options.start)


def import_pack() -> None:
    """This checkout, whatever its folder is called, as the package `kontextkit`."""
    door, rooms = ROOT / "__init__.py", [str(ROOT)]
    spec = importlib.util.spec_from_file_location("kontextkit", door, submodule_search_locations=rooms)
    assert spec
    assert spec.loader
    pack = sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)


if __name__ == "__main__":
    main()
