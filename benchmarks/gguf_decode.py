"""Unpacking all matrices of a full-size FLUX once on a card, against what its memory allows.

    python benchmarks/gguf_decode.py [--tiny] [--out FILE]

The floor is the packed bytes read and the BF16 weights written at the speed of a copy on the same card. Medians of
synchronized times after a warm-up. A pass is replayed as one CUDA graph: in a step, where a matrix multiplication
follows each decoding, the card is behind the host; here the host would be measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import report
import torch
from random_files import FULL, TINY, random_blocks

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS")
GOAL = 2.0  # for the types that goals are set for
WITH_GOAL = TYPES[:5]


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "gguf_decode.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    from kontextkit.devtools.flux_shapes import bfl_shapes
    from kontextkit.engine.quant import block_type
    from kontextkit.engine.quant.on_gpu import GPU_PART

    shapes = bfl_shapes(**(TINY if options.tiny else FULL))
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2 and "blocks." in name]
    n_weights = sum(rows * columns for rows, columns in matrices)
    speed = copy_speed()
    rows = [
        report.row(
            "gguf.copy_tb_per_s", speed / 1e12, "TB/s", "a copy on this card, bytes read and written", better="higher"
        )
    ]
    for qtype in TYPES:
        layout = block_type(qtype)
        assert layout
        packed = on_device(matrices, qtype)
        floor = (n_weights / layout.block_size * layout.n_bytes + 2 * n_weights) / speed * 1e3
        ms = median_ms(replayed(lambda p=packed, t=layout: [t.decode(one, torch.bfloat16) for one in p]))  # type: ignore[misc]
        goal = GOAL if qtype in WITH_GOAL else None
        note = f"{ms:.1f} ms a pass over {n_weights / 1e9:.1f} billion weights, the floor {floor:.1f}"
        rows.append(report.row(f"gguf.{qtype.lower()}.decode_over_floor", ms / floor, "ratio", note, goal))
        if qtype == "Q4_K":
            in_parts = replayed(
                lambda p=packed, t=layout: [  # type: ignore[misc]
                    t.decode_in_parts(one.view(-1, t.n_bytes), torch.bfloat16, GPU_PART) for one in p
                ]
            )
            plain = median_ms(in_parts, turns=2)
            rows.append(report.row("gguf.q4_k.plain_torch_over_floor", plain / floor, "ratio", f"{plain:.1f} ms"))
    report.write(options.out, rows, "gguf_decode.py")


def on_device(matrices: list[tuple[int, ...]], qtype: str) -> list[torch.Tensor]:
    """Every matrix a tensor of its own, so that no cache holds them; drawn once a shape."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rng = np.random.default_rng(0)
    drawn = {shape: torch.from_numpy(random_blocks(shape, qtype, rng)).to(device) for shape in set(matrices)}
    return [drawn[shape].clone() for shape in matrices]


def copy_speed() -> float:
    """Bytes a second that a copy reads and writes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.zeros(1 << (32 if device == "cuda" else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_ms(lambda: target.copy_(source)) * 1e3


def replayed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The same as one CUDA graph where there is a card."""
    if not torch.cuda.is_available():
        return run
    run()  # Triton compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()

    def replay() -> Any:
        graph.replay()
        return results  # the graph's memory

    return replay


def median_ms(run: Callable[[], Any], turns: int = 10) -> float:
    """Of so many runs."""
    return 1e3 * statistics.median(report.in_turns({"": run}, turns, warm_up=2)[""])


if __name__ == "__main__":
    main()
