"""A bounds-checked cursor over the bytes of a GGUF file."""

from __future__ import annotations

import mmap
import struct

from ..errors import CheckpointError

MAX_STRING = 1 << 20  # bytes; chat templates reach some 100 KB
MAX_KEPT = 1 << 12  # bytes of a string that is remembered; longer metadata are stepped over
MAX_ARRAY_DEPTH = 2
MAX_ROWS = 1 << 15  # of the tables of tensors and of metadata, some thousand in the largest models
MAX_WALKED = 1 << 20  # strings in all arrays together, which must be walked one by one; vocabularies reach half of it

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Cursor:
    """Reads little-endian GGUF primitives; every read past the end or over a limit is a CheckpointError."""

    def __init__(self, buffer: mmap.mmap, file_name: str):
        self.buffer = buffer
        self.file_name = file_name
        self.position = 0
        self.walked = 0

    def fail(self, problem: str) -> CheckpointError:
        """The error for a header that cannot be true, with its place in the file."""
        return CheckpointError(
            f"{self.file_name}: broken GGUF header at byte {self.position}: {problem}. "
            "The download is damaged or incomplete; download the file again."
        )

    def skip(self, n_bytes: int) -> int:
        """Move over `n_bytes`; returns where they begin."""
        begin = self.position
        if n_bytes > len(self.buffer) - begin:
            raise self.fail(f"{n_bytes} bytes are needed, the file ends after {len(self.buffer) - begin}")
        self.position += n_bytes
        return begin

    def scalar(self, code: str) -> int | float | bool:
        """One number of struct format `code`."""
        return struct.unpack_from("<" + code, self.buffer, self.skip(struct.calcsize("<" + code)))[0]

    def rows(self, unit_bytes: int, what: str) -> int:
        """The count of a table's rows."""
        n = self.count(unit_bytes, what)
        if n > MAX_ROWS:
            raise self.fail(f"{n} {what}, at most {MAX_ROWS} are allowed")
        return n

    def count(self, unit_bytes: int, what: str) -> int:
        """A 64-bit count of things of at least `unit_bytes` each, which must fit in the rest of the file."""
        n = int(self.scalar("Q"))
        left = len(self.buffer) - self.position
        if n * unit_bytes > left:
            raise self.fail(f"{n} {what} cannot fit in the {left} bytes that are left")
        return n

    def string(self, what: str = "a string") -> str:
        """A length-prefixed UTF-8 string of at most MAX_STRING bytes, of which a longer one than MAX_KEPT is cut."""
        n = self.count(1, f"bytes of {what}")
        if n > MAX_STRING:
            raise self.fail(f"{what} of {n} bytes, at most {MAX_STRING} are allowed")
        begin = self.skip(n)
        if n > MAX_KEPT:
            return self.buffer[begin : begin + MAX_KEPT].decode("utf-8", errors="ignore")
        try:
            return self.buffer[begin : begin + n].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def value(self, type_id: int, depth: int = 0) -> object:
        """A metadata value; arrays are stepped over and read as None, fixed-size ones in constant time."""
        if type_id in _SCALARS:
            return self.scalar(_SCALARS[type_id])
        if type_id == _STRING:
            return self.string("a metadata string")
        if type_id != _ARRAY or depth == MAX_ARRAY_DEPTH:
            raise self.fail(f"metadata type {type_id} at array depth {depth}")
        item_type = int(self.scalar("I"))
        if item_type in _SCALARS:
            item_bytes = struct.calcsize("<" + _SCALARS[item_type])
            self.skip(self.count(item_bytes, "array items") * item_bytes)
            return None
        n_items = self.count(8, "array items")
        self.walked += n_items
        if self.walked > MAX_WALKED:
            raise self.fail(f"{self.walked} strings in arrays, at most {MAX_WALKED} are allowed")
        for _ in range(n_items):
            if item_type == _STRING:
                self.skip(self.count(1, "bytes of an array's string"))
            else:
                self.value(item_type, depth + 1)
        return None
