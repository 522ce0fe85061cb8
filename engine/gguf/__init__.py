"""GGUF files: a bounded parser of our own for headers that strangers wrote."""

from .header import Header, TensorInfo, read_header

__all__ = ["Header", "TensorInfo", "read_header"]
