"""Which tensor of a FLUX.1 file gets which type, as in the published files.

Matrices of the blocks are quantized, vectors stay F32, and the ten small matrices outside the blocks BF16. The types
that end in _M store the double blocks' attention inputs one level higher.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..quant import block_type

WHERE_ROWS_DO_NOT_FIT = "F16"


@dataclass(frozen=True)
class Mix:
    """blocks: of the blocks' matrices; qkv: of the double blocks' qkv; outside: of the other matrices.

    file_type: llama.cpp's number of the mix, for `general.file_type` (its `llama_ftype`).
    """

    blocks: str
    qkv: str
    outside: str
    file_type: int

    def qtype(self, bfl_name: str, shape: tuple[int, ...]) -> str:
        """The type of the tensor of this name; F16 where its rows are not whole blocks."""
        if len(shape) == 1:
            return "F32"
        if "_blocks." not in bfl_name:
            return self.outside
        qtype = self.qkv if "_attn.qkv." in bfl_name else self.blocks
        layout = block_type(qtype)
        return WHERE_ROWS_DO_NOT_FIT if layout and shape[-1] % layout.block_size else qtype


MIXES = {
    "Q2_K": Mix("Q2_K", "Q2_K", "BF16", 10),
    "Q3_K_S": Mix("Q3_K", "Q3_K", "BF16", 11),
    "Q3_K_M": Mix("Q3_K", "Q4_K", "BF16", 12),
    "Q4_0": Mix("Q4_0", "Q4_0", "BF16", 2),
    "Q4_K_S": Mix("Q4_K", "Q4_K", "BF16", 14),
    "Q4_K_M": Mix("Q4_K", "Q5_K", "BF16", 15),
    "Q5_0": Mix("Q5_0", "Q5_0", "BF16", 8),
    "Q5_K_S": Mix("Q5_K", "Q5_K", "BF16", 16),
    "Q5_K_M": Mix("Q5_K", "Q6_K", "BF16", 17),
    "Q6_K": Mix("Q6_K", "Q6_K", "BF16", 18),
    "Q8_0": Mix("Q8_0", "Q8_0", "BF16", 7),
    "F16": Mix("F16", "F16", "F16", 1),
    "BF16": Mix("BF16", "BF16", "BF16", 32),
}
