"""What a FLUX.1 transformer file holds, for tests and benchmarks that fill it themselves."""

from __future__ import annotations


def bfl_shapes(hidden: int, text: int, pooled: int, depth: int, single: int) -> dict[str, tuple[int, ...]]:
    """{BFL name: shape} of a FLUX.1 transformer with guidance embedding."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, n_in: int, n_out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_out, n_in), (n_out,)

    linear("img_in", 64, hidden)
    linear("txt_in", text, hidden)
    for name, width in (("time_in", 256), ("vector_in", pooled), ("guidance_in", 256)):
        linear(f"{name}.in_layer", width, hidden)
        linear(f"{name}.out_layer", hidden, hidden)
    for i in range(depth):
        for stream in ("img", "txt"):
            stem = f"double_blocks.{i}.{stream}"
            linear(f"{stem}_mod.lin", hidden, 6 * hidden)
            linear(f"{stem}_attn.qkv", hidden, 3 * hidden)
            linear(f"{stem}_attn.proj", hidden, hidden)
            linear(f"{stem}_mlp.0", hidden, 4 * hidden)
            linear(f"{stem}_mlp.2", 4 * hidden, hidden)
            shapes |= {f"{stem}_attn.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    for i in range(single):
        linear(f"single_blocks.{i}.modulation.lin", hidden, 3 * hidden)
        linear(f"single_blocks.{i}.linear1", hidden, 7 * hidden)
        linear(f"single_blocks.{i}.linear2", 5 * hidden, hidden)
        shapes |= {f"single_blocks.{i}.norm.{part}_norm.scale": (128,) for part in ("query", "key")}
    linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)
    linear("final_layer.linear", hidden, 64)
    return shapes
