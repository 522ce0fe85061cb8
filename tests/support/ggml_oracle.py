"""ggml's own quantization, in C."""

import ctypes

import numpy as np
from kontextkit.engine.quant import block_type


def by_ggml(weights: np.ndarray, qtype: str) -> np.ndarray:
    """Weights (rows, columns) float32 -> packed rows (rows, row_bytes) uint8."""
    import ggml

    layout = block_type(qtype)
    packed = np.empty((len(weights), layout.row_bytes(weights.shape[1])), np.uint8)
    source = weights.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    target = packed.ctypes.data_as(ctypes.c_void_p)
    written = ggml.ggml_quantize_chunk(getattr(ggml, f"GGML_TYPE_{qtype}"), source, target, 0, *weights.shape, None)
    assert written == packed.nbytes
    return packed
