"""Hugging Face's names for the tensors of text encoders, whatever a file calls them.

llama.cpp's names: https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py
"""

from __future__ import annotations

import re
from collections.abc import Collection

PREFIXES = tuple(
    f"{group}{encoder}.transformer." for group in ("text_encoders.", "") for encoder in ("clip_l", "t5xxl")
)
WORDS = ("token_embd.weight", "encoder.embed_tokens.weight")
PARTS = {  # of llama.cpp's enc.blk.N
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(\w+)\.weight")


def stored_names(names: Collection[str]) -> dict[str, str]:
    """{Hugging Face's name: the file's own}, of the tensors under the file's prefix where it has one."""
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), "")
    return {_hugging_face(name.removeprefix(prefix)): name for name in names if name.startswith(prefix)}


def _hugging_face(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        number, part = match.groups()
        return f"encoder.block.{number}.{PARTS.get(part, part)}.weight"
    if name in WORDS:
        return "shared.weight"
    return "encoder.final_layer_norm.weight" if name == "enc.output_norm.weight" else name
