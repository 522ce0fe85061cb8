"""Quantizes over an older file again and again and kills that at random moments; tells what was left.

Arguments: the source, the target, how many times, the seed. Every run is a fork of one process, so that importing does
not fill the time; that process itself computes nothing.
"""

import hashlib
import importlib.util
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(source: Path, target: Path, times: int, seed: int) -> None:
    """Prints as JSON what each kill kept, the old or the new file, how many left an unfinished one, and debris."""
    spec = importlib.util.spec_from_file_location(
        "kontextkit", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
    from kontextkit.engine.quantizer.run import quantize
    from kontextkit.engine.quantizer.source import Source
    from kontextkit.engine.quantizer.target import remove_debris

    Source(source)  # imports the rest

    def start(qtype: str) -> int:
        child = os.fork()
        if child == 0:
            quantize(source, qtype, target)
            os._exit(0)
        return child

    def contents() -> str:
        return hashlib.sha256(target.read_bytes()).hexdigest()

    begin = time.monotonic()
    os.waitpid(start("Q4_0"), 0)
    seconds, new = time.monotonic() - begin, contents()
    os.waitpid(start("Q8_0"), 0)
    old, kept, unfinished, dice = contents(), [], 0, random.Random(seed)
    for _ in range(times):
        child = start("Q4_0")
        time.sleep(dice.uniform(0, 1.2 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kept.append({old: "old", new: "new"}.get(contents(), "neither"))
        unfinished += any(path.suffix == ".unfinished" for path in target.parent.iterdir())
        if kept[-1] == "new":
            os.waitpid(start("Q8_0"), 0)
    remove_debris(target.parent)
    debris = sorted({path.name for path in target.parent.iterdir()} - {target.name, f"{target.name}.json"})
    print(json.dumps({"kept": kept, "unfinished": unfinished, "debris": debris}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
