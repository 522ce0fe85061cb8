"""Torch-only heart of the pack: nothing in here imports ComfyUI."""
