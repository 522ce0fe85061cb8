"""The file that is written: whole or not at all, whatever happens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import QuantizeError

UNFINISHED = ".unfinished"  # ends the name of a file that is being written
_ROOM = 1 << 20  # bytes that the notes and the file system want beside the file


class Sink:
    """Bytes to a file, and their SHA-256."""

    def __init__(self, file: IO[bytes]):
        self.file, self.digest, self.n_bytes = file, hashlib.sha256(), 0

    def write(self, content: Any) -> None:
        """content: anything with a buffer."""
        self.file.write(content)
        self.digest.update(content)
        self.n_bytes += memoryview(content).nbytes


def check_target(target: Path, n_bytes: int, sources: list[Path]) -> None:
    """Raises QuantizeError where a file of n_bytes cannot be written to `target`."""
    if target.suffix.lower() != ".gguf":
        raise QuantizeError(f"{target.name}: the result is a GGUF file. Choose a name that ends in .gguf.")
    folder = target.parent
    if not folder.is_dir():
        raise QuantizeError(f"{folder}: there is no such folder. Make it, or choose another for {target.name}.")
    if target.resolve().parent != folder.resolve():
        raise QuantizeError(
            f"{target}: this is a link out of its folder, to {target.resolve()}. Remove it or choose another name."
        )
    if target.is_dir():
        raise QuantizeError(f"{target}: this is a folder. Choose another name.")
    for source in sources:
        if target.exists() and source.samefile(target):
            raise QuantizeError(f"{target.name}: this is the source itself. Choose another name for the result.")
    free = shutil.disk_usage(folder).free
    if free < n_bytes + _ROOM:
        raise QuantizeError(
            f"{target.name} will have {n_bytes / 1e9:.2f} GB, the disk of {folder} has {free / 1e9:.2f} GB free. "
            "Free some space, or choose a smaller type."
        )


@contextmanager
def written_whole(target: Path) -> Iterator[Sink]:
    """A sink whose bytes are at `target` afterwards, on the disk; after an error nothing has changed."""
    remove_debris(target.parent)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            with suppress(OSError):  # some network drives know no locks; there debris stays
                _lock(file)
            yield Sink(file)
            file.flush()
            os.fsync(file.fileno())
        notes_of(target).unlink(missing_ok=True)  # those of an older file must not stand beside the new one
        os.replace(unfinished, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise QuantizeError(
            f"{target.name}: it could not be written ({error.strerror or error}). What was there before is as it was; "
            "free some space, unload a model that uses this file, or choose another folder, then run it again."
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_notes(target: Path, notes: dict[str, Any]) -> None:
    """The JSON beside the file."""
    with written_whole(notes_of(target)) as sink:
        sink.write((json.dumps(notes, indent=1) + "\n").encode())


def notes_of(target: Path) -> Path:
    """Where the JSON of a result lies."""
    return target.with_name(f"{target.name}.json")


def remove_debris(folder: Path) -> None:
    """Deletes what an earlier run left unfinished because it was killed; that of one still running stays."""
    for path in folder.glob(f".*{UNFINISHED}"):
        with suppress(OSError), path.open("rb") as file:  # Windows refuses to delete what another process writes
            _lock(file)
            path.unlink()


def _lock(file: IO[bytes]) -> None:
    """For as long as the file is open; raises OSError where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """The new name too is on the disk."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
