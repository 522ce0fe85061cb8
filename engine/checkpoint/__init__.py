"""Opens a file of weights, GGUF or safetensors, as one table of packed tensors."""

from .checkpoint import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
