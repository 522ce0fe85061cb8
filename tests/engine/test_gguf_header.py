"""The GGUF parser against gguf-py's writer, and against hostile headers."""

import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.gguf import read_header


@pytest.fixture
def file(tmp_path):
    """A small file by gguf-py with every kind of metadata."""
    path = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_string("general.name", "Kontext")
    writer.add_uint32("some.number", 7)
    writer.add_array("some.words", ["a", "bc"])
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.nested", [[1, 2], [3, 4]])
    rng = np.random.default_rng(0)
    for i, kind in enumerate(("F32", "F16", "Q8_0", "Q4_0")):
        values = rng.normal(size=(3 + i, 64)).astype(np.float32)
        qtype = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"t{i}.weight", gguf.quantize(values, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_is_what_gguf_py_reads(file):
    header = read_header(file)
    reader = gguf.GGUFReader(file)
    assert header.metadata["general.architecture"] == "flux"
    assert header.metadata["general.name"] == "Kontext"
    assert header.metadata["some.number"] == 7
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.qtype == theirs.tensor_type.name
        assert ours.shape == tuple(int(n) for n in reversed(theirs.shape))
        assert (ours.offset, ours.n_bytes) == (theirs.data_offset, theirs.n_bytes)


def test_version_2_is_read_alike(file):
    content = bytearray(file.read_bytes())
    expected = read_header(file)
    content[4:8] = struct.pack("<I", 2)
    file.write_bytes(content)
    assert read_header(file) == expected


def header_of(*entries: bytes, n_tensors: int | None = None, pairs: bytes = b"", n_pairs: int = 0, tail: int = 4096):
    n = len(entries) if n_tensors is None else n_tensors
    return b"GGUF" + struct.pack("<IQQ", 3, n, n_pairs) + pairs + b"".join(entries) + bytes(tail)


def entry(name=b"a", dims=(32,), type_id=0, offset=0):
    return struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, type_id, offset)


def pair(key: bytes, type_id: int, payload: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", type_id) + payload


HOSTILE = {
    "version": b"GGUF" + struct.pack("<IQQ", 9, 0, 0),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "many arrays of strings": header_of(
        pairs=b"".join(pair(k, 9, struct.pack("<IQ", 8, 400000) + bytes(8 * 400000)) for k in (b"a", b"b", b"c")),
        n_pairs=3,
    ),
    "a hundred thousand tensors": header_of(n_tensors=100000, tail=100000 * 32),
    "tensor count of 2^63": header_of(n_tensors=1 << 63),
    "pair count of 2^62": header_of(n_pairs=1 << 62),
    "string past the end": header_of(pairs=struct.pack("<Q", 1 << 40), n_pairs=1),
    "array past the end": header_of(pairs=pair(b"k", 9, struct.pack("<IQ", 0, 1 << 50)), n_pairs=1),
    "array of arrays of arrays": header_of(pairs=pair(b"k", 9, struct.pack("<IQIQIQ", 9, 1, 9, 1, 9, 1)), n_pairs=1),
    "unknown metadata type": header_of(pairs=pair(b"k", 77, b""), n_pairs=1),
    "key twice": header_of(pairs=pair(b"k", 0, b"1") * 2, n_pairs=2),
    "alignment of 3": header_of(pairs=pair(b"general.alignment", 4, struct.pack("<I", 3)), n_pairs=1),
    "alignment is text": header_of(pairs=pair(b"general.alignment", 8, struct.pack("<Q", 1) + b"x"), n_pairs=1),
    "no dimensions": header_of(entry(dims=())),
    "five dimensions": header_of(entry(dims=(1, 1, 1, 1, 1))),
    "a dimension of zero": header_of(entry(dims=(0, 4))),
    "product overflows": header_of(entry(dims=(1 << 62, 1 << 62))),
    "half a block": header_of(entry(dims=(33,), type_id=8)),
    "unknown type": header_of(entry(type_id=4000)),
    "unaligned": header_of(entry(offset=8)),
    "outside the file": header_of(entry(offset=1 << 20)),
    "wrapped offset": header_of(entry(offset=(1 << 64) - 32)),
    "same name twice": header_of(entry(), entry(offset=128)),
    "overlap": header_of(entry(), entry(name=b"b", offset=32)),
    "NUL in a name": header_of(entry(name=b"a\0b")),
    "dots in a name": header_of(entry(name=b"../a")),
    "long name": header_of(entry(name=b"a" * 128)),
    "name is not UTF-8": header_of(entry(name=b"\xff\xfe")),
    "only the magic": b"GGUF",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_header_is_refused_at_once(case, tmp_path):
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[case])
    begin = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"hostile\.gguf: broken GGUF header at byte \d+"):
        read_header(path)
    assert time.perf_counter() - begin < 2


WIDE = {
    "strings of a megabyte": header_of(
        pairs=b"".join(pair(b"%d" % i, 8, struct.pack("<Q", 1 << 20) + b"x" * (1 << 20)) for i in range(300)),
        n_pairs=300,
    ),
    "all the strings allowed": header_of(
        pairs=pair(b"k", 9, struct.pack("<IQ", 8, 1 << 20)), n_pairs=1, tail=(1 << 20) * 8
    ),
    "all the tensors allowed": header_of(
        *(entry(b"%d" % i, offset=128 * i) for i in range(1 << 15)), tail=(1 << 15) * 128 + 64
    ),
}


@pytest.mark.parametrize("case", WIDE)
def test_the_widest_header_costs_little(case, tmp_path):
    """Under 2 s and 200 MB beside the mapped file."""
    path = tmp_path / "wide.gguf"
    path.write_bytes(WIDE[case])
    begin = time.thread_time()
    read_header(path)
    assert time.thread_time() - begin < 2
    tracemalloc.start()
    read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6


def test_every_truncation_is_refused(file):
    whole = file.read_bytes()
    end_of_data = max(t.offset + t.n_bytes for t in read_header(file).tensors)
    for length in range(4, end_of_data, 17):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_header(file)


def test_any_damaged_byte_gives_an_answer_or_a_checkpoint_error(file):
    whole = bytearray(file.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(2000):
        damaged = whole.copy()
        damaged[int(rng.integers(4, 600))] = int(rng.integers(0, 256))
        file.write_bytes(damaged)
        try:
            read_header(file)
        except CheckpointError:
            continue
