"""Loads a model in a fresh process and tells how much memory that took beside the mapped file."""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def anonymous_bytes() -> int:
    """Memory of this process that is no file (Linux)."""
    (line,) = [x for x in Path("/proc/self/smaps_rollup").read_text().splitlines() if x.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024


def main(path: str) -> None:
    """Prints the bytes. What is imported along the way does not count, so a first load warms up."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    spec = importlib.util.spec_from_file_location(
        "kontextkit", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
    from kontextkit.bridge.model import load

    load(path)
    before = anonymous_bytes()
    patcher = load(path)
    print(anonymous_bytes() - before)
    del patcher
