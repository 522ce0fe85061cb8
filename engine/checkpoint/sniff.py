"""Tells what a file is from its first bytes, and refuses in a sentence what is not a file of weights."""

from __future__ import annotations

from pathlib import Path

from ..errors import CheckpointError

_STRANGERS = (
    (b"version https://git-lfs", "a git-lfs pointer, not the model itself", "run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (or a PyTorch .pt/.ckpt file)", "unpack it, or get the model as .safetensors"),
    (b"<!doctype html", "a web page", "the site answered with a page; log in or accept the licence there"),
    (b"<html", "a web page", "the site answered with a page; log in or accept the licence there"),
    (b"\x1f\x8b", "a gzip archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"\x80\x02", "a Python pickle", "get the model as .safetensors"),
)
_EXTENSIONS = {"GGUF": (".gguf",), "safetensors": (".safetensors", ".sft")}


def sniff(path: Path) -> str:
    """'GGUF' or 'safetensors', by content. Raises CheckpointError for anything else or a misleading extension."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"{path.name}: the file is empty (0 bytes). Download it again.")
    if head[:4] == b"GGUF":
        kind = "GGUF"
    elif head[8:9] == b"{":  # after eight bytes of length, which may look like anything
        kind = "safetensors"
    else:
        raise CheckpointError(_explain(path.name, head))
    if path.suffix.lower() not in _EXTENSIONS[kind]:
        raise CheckpointError(
            f"{path.name}: the content is {kind} but the name ends in {path.suffix!r}. "
            f"Rename it to {path.stem}{_EXTENSIONS[kind][0]} and refresh the page."
        )
    return kind


def _explain(file_name: str, head: bytes) -> str:
    """What a file of neither kind is, by its first bytes."""
    text = head.lstrip().lower()
    for magic, what, remedy in _STRANGERS:
        if head.startswith(magic) or text.startswith(magic):
            return (
                f"{file_name}: this is {what}; expected a .gguf or .safetensors file. Next: {remedy}, "
                "then download the file again."
            )
    return (
        f"{file_name}: neither GGUF nor safetensors (it begins with {head[:8]!r}). "
        "Choose another file, or download this one again."
    )
