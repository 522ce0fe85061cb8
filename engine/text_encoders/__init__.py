"""FLUX's two text encoders: what their files look like."""

from .read import read_clip_l, read_t5xxl

__all__ = ["read_clip_l", "read_t5xxl"]
