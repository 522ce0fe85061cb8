"""Between ComfyUI and the engine: the only room besides `nodes` that may import ComfyUI."""
