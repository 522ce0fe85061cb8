"""Opens a file of weights, GGUF or safetensors, as one table of packed tensors, and a LoRA's as it is stored."""

from .checkpoint import Checkpoint, explained, open_checkpoint
from .safetensors_file import map_safetensors
from .scales import check_scales
from .sniff import sniff

__all__ = ["Checkpoint", "check_scales", "explained", "map_safetensors", "open_checkpoint", "sniff"]
