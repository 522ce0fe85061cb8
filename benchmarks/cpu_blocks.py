"""A full-size double and single block on the CPU from packed weights, beside BF16: 512x512, one reference.

    COMFYUI_PATH=... python benchmarks/cpu_blocks.py [--out FILE]

1024 target, 1024 reference and 512 text tokens, arithmetic in float32 as KontextLoadModel chooses it on a CPU. Medians
of three after a warm-up, the types taken in turns.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import report
import torch
from random_files import FULL, random_blocks

TYPES = ("BF16", "Q8_0", "Q4_K", "Q3_K")
IMG, TXT, HIDDEN = 2048, 512, FULL["hidden"]


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "cpu_blocks.json")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    models = {qtype: model(qtype) for qtype in TYPES}
    steps = {(qtype, kind): run for qtype, m in models.items() for kind, run in blocks(m).items()}
    with torch.inference_mode():
        seconds = report.in_turns(steps, turns=3, warm_up=1)
    rows = []
    for (qtype, kind), times in seconds.items():
        ratio = statistics.median(times) / statistics.median(seconds["BF16", kind])
        note = f"{ratio:.2f} of BF16, from {min(times):.2f} to {max(times):.2f}"
        rows.append(report.row(f"cpu.{kind}_block.{qtype.lower()}.seconds", statistics.median(times), "s", note))
    report.write(options.out, rows, "cpu_blocks.py")


def model(qtype: str) -> Any:
    """FLUX.1 of one block of each kind, its matrices random blocks of `qtype` with small scales."""
    from kontextkit.devtools.flux_shapes import bfl_shapes
    from kontextkit.engine.checkpoint import Checkpoint
    from kontextkit.engine.flux.build import build_transformer
    from kontextkit.engine.flux.weights import read_weights

    shapes = bfl_shapes(**FULL | {"depth": 1, "single": 1})
    tensors = {name: random(shape, qtype if "blocks." in name else "BF16") for name, shape in shapes.items()}
    return build_transformer(*read_weights(Checkpoint(qtype, tensors)), qtype)


def random(shape: tuple[int, ...], qtype: str) -> Any:
    """A random tensor of a type."""
    from kontextkit.engine.quant import PackedTensor

    if qtype == "BF16" or len(shape) == 1:
        return PackedTensor((torch.randn(shape) * 0.02).bfloat16(), "BF16", shape)
    return PackedTensor(torch.from_numpy(random_blocks(shape, qtype, np.random.default_rng(0))), qtype, shape)


def blocks(transformer: Any) -> dict[str, Any]:
    """{kind: a call that runs its block on random tokens}."""
    from kontextkit.engine.flux.blocks import Parts
    from kontextkit.engine.flux.hooks import BlockHooks, BlockPlace
    from kontextkit.engine.flux.rope import embed_positions

    img, txt, vec = torch.randn(1, IMG, HIDDEN), torch.randn(1, TXT, HIDDEN), torch.randn(1, HIDDEN)
    pe = embed_positions(torch.rand(1, IMG + TXT, 3) * 64, transformer.config.axes_dims_rope)
    place, hooks = BlockPlace("double", 0, 1, TXT), BlockHooks()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return hooks.attend(place, q, k, v, pe, None)

    parts, double, single = Parts(), transformer.transformer_blocks[0], transformer.single_transformer_blocks[0]
    return {
        "double": lambda: parts.double_block(double, img, txt, vec, attend),
        "single": lambda: parts.single_block(single, torch.cat((txt, img), dim=1), vec, attend),
    }


if __name__ == "__main__":
    main()
