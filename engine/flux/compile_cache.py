"""Compiled blocks on disk (`torch.compiler.save_cache_artifacts`), so that the next process compiles nothing anew.

The files are pickles, which run code when they are read: they are read from a folder that only this user can write to.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import stat
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

MOST_BYTES = 1 << 30  # of the folder
SUFFIX = ".compiled"
_N_DIGEST = hashlib.sha256().digest_size


def machine() -> str:
    """Everything that compiled blocks depend on beside the weights' types: a name for their file."""
    parts = [torch.__version__, platform.python_version(), torch.backends.cpu.get_cpu_capability()]
    parts += [Path(__file__).with_name("blocks.py").read_text(), version("triton") if find_spec("triton") else ""]
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        parts += [card.name, f"{card.major}.{card.minor}", driver_version()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def driver_version() -> str:
    """Of the NVIDIA driver, as the CUDA version it brings; nothing where none is found."""
    found = ctypes.c_int()
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return ""
    return str(found.value)


class CompileCache:
    """One file in a private folder, for a mode of `compiled.MODES`."""

    def __init__(self, folder: Path, mode: str):
        self.folder = folder
        self.path = folder / f"{mode}-{machine()}{SUFFIX}"

    def load(self) -> bool:
        """Whether there was something to load. What is damaged or not this user's own is thrown away with a line."""
        try:
            if not self.path.exists():
                return False
            if reason := not_private(self.folder) or not_private(self.path):
                self._say(f"not read: {reason}")
                return False
            content = self.path.read_bytes()
            digest, artifacts = content[:_N_DIGEST], content[_N_DIGEST:]
            if hashlib.sha256(artifacts).digest() != digest:
                self._say("damaged and removed; the blocks are compiled anew")
                self.path.unlink()
                return False
            os.utime(self.path)  # the oldest go first
        except OSError as error:
            self._say(f"not read: {error}")
            return False
        try:
            return torch.compiler.load_cache_artifacts(artifacts) is not None
        except Exception as error:  # whatever torch meets in them, the blocks can be compiled anew
            self._say(f"not read: {error}")
            return False

    def save(self) -> bool:
        """Everything this process compiled so far; whether it was written."""
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or len(saved[0]) > MOST_BYTES:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if reason := not_private(self.folder):
                self._say(f"not written: {reason}")
                return False
            self._make_room(len(saved[0]))
            descriptor, part = tempfile.mkstemp(dir=self.folder)  # readable by this user alone
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(hashlib.sha256(saved[0]).digest())
                    file.write(saved[0])
                os.replace(part, self.path)
            except BaseException:
                os.unlink(part)
                raise
        except OSError as error:
            self._say(f"not written: {error}. The next start compiles anew")
            return False
        return True

    def _make_room(self, n_bytes: int) -> None:
        others = [path for path in self.folder.glob(f"*{SUFFIX}") if path != self.path]
        others.sort(key=lambda path: path.stat().st_mtime)
        while others and n_bytes + sum(path.stat().st_size for path in others) > MOST_BYTES:
            others.pop(0).unlink()

    def _say(self, what: str) -> None:
        logging.warning("KontextKit: compiled blocks in %s: %s.", self.path, what)


def not_private(path: Path) -> str:
    """Why somebody else might have written to `path`, or nothing. Windows keeps user folders private itself."""
    if not hasattr(os, "getuid"):
        return ""
    status = path.stat()
    if status.st_uid != os.getuid():
        return f"{path} belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to {path}; `chmod go-w` it"
    return ""
