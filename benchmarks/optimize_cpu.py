"""Seconds of an edit with the demo model under the presets of Optimize Kontext, with one reference and with three.

    COMFYUI_PATH=... python benchmarks/optimize_cpu.py [--out FILE]

Encode, 28 steps at 256x256, decode, the presets in turns in one process; medians of five after a warm-up. The presets
decide for themselves which steps to skip. On the CPU they compile nothing, so `quality` is the same as `off` there.
"""

from __future__ import annotations

import statistics
from functools import partial
from itertools import count
from typing import Any

import report
import torch
from held_out import Editor, Settings, held_out, truth

KINDS = {"one": "recolor", "three": "combine three"}  # by number of references
PRESETS = ("off", "balanced", "fast")


def main() -> None:
    """Command line."""
    options = report.parser(__doc__, "optimize_cpu.json").parse_args()
    report.import_comfyui()
    report.import_pack()
    rows = []
    with torch.inference_mode():
        for number, kind in KINDS.items():
            seconds = measure(kind)
            for name in PRESETS:
                note = f"28 steps, from {min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
                took = statistics.median(seconds[name])
                rows.append(report.row(f"optimize.{name}.edit_seconds.{number}", took, "s", note))
                if name != "off":
                    ratio = statistics.median(seconds["off"]) / took
                    rows.append(report.row(f"optimize.{name}.edit_speedup.{number}", ratio, "times", better="higher"))
    report.write(options.out, rows, "optimize_cpu.py")


def measure(kind: str) -> dict[str, list[float]]:
    """Seconds of each preset for the first held-out edit of a kind."""
    from kontextkit.bridge import optimize
    from kontextkit.engine.tiers.presets import PRESETS as CHOICES

    edit = held_out(8)[kind][0]
    right, references = truth([edit], (256, 256))
    editors = {name: Editor() for name in PRESETS}
    for name, editor in editors.items():
        editor.model, _ = optimize.apply(editor.model, CHOICES[name])
    seeds = count()

    def once(editor: Any) -> Any:
        return editor.edit([edit.prompt], references, Settings(), seed=next(seeds), right=right)

    return report.in_turns({name: partial(once, editor) for name, editor in editors.items()}, turns=5, warm_up=1)


if __name__ == "__main__":
    main()
