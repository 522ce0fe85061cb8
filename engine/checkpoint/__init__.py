"""Opens a file of weights, GGUF or safetensors, as one table of packed tensors."""

from .checkpoint import Checkpoint, open_checkpoint
from .scales import check_scales

__all__ = ["Checkpoint", "check_scales", "open_checkpoint"]
