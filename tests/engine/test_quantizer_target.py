"""The file that the quantizer writes is whole or not there, whatever happens."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kontextkit.devtools.flux_shapes import bfl_shapes
from kontextkit.engine.errors import QuantizeError
from kontextkit.engine.quantizer import target as module
from kontextkit.engine.quantizer.run import quantize
from kontextkit.engine.quantizer.target import check_target, remove_debris, written_whole
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
KILLED = ROOT / "tests" / "support" / "killed_runs.py"


@pytest.fixture
def source(tmp_path):
    shapes = bfl_shapes(hidden=128, text=32, pooled=32, depth=1, single=1)
    path = tmp_path / "in" / "model.safetensors"
    path.parent.mkdir()
    save_file({name: torch.full(shape, 0.5) for name, shape in shapes.items()}, path)
    return path


@pytest.fixture
def target(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "model.gguf"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Cancelled(BaseException):
    """As ComfyUI's interrupt is."""


def test_a_cancelled_run_leaves_the_old_file_and_nothing_else(source, target):
    target.write_text("old")

    def progress(done, total):
        if done > total / 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        quantize(source, "Q8_0", target, progress=progress)
    assert names(target.parent) == ["model.gguf"]
    assert target.read_text() == "old"


def test_progress_goes_from_nothing_to_all_weights(source, target):
    seen = []
    quantize(source, "Q8_0", target, progress=lambda *state: seen.append(state))
    total = seen[0][1]
    assert seen[0] == (0, total)
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_kill_at_any_of_20_moments_loses_nothing(source, target):
    command = [sys.executable, str(KILLED), str(source), str(target), "20", "0"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert set(told["kept"]) <= {"old", "new"}
    assert "old" in told["kept"]
    assert told["unfinished"]
    assert told["debris"] == []


def test_debris_of_a_run_that_still_goes_on_stays(target):
    with written_whole(target) as sink:
        (target.parent / ".dead.gguf.1.unfinished").touch()
        remove_debris(target.parent)
        (left,) = names(target.parent)
        assert left.startswith(".model.gguf.")
        sink.write(b"new")
    assert names(target.parent) == ["model.gguf"]
    assert target.read_bytes() == b"new"


def test_the_source_is_never_overwritten(source):
    alias = source.with_suffix(".gguf")
    alias.hardlink_to(source)
    with pytest.raises(QuantizeError, match="this is the source itself"):
        quantize(source, "Q8_0", alias)
    with pytest.raises(QuantizeError, match=r"model\.safetensors: the result is a GGUF file"):
        quantize(source, "Q8_0", source)


def test_a_link_out_of_the_folder_is_refused_and_a_linked_folder_is_not(tmp_path, target):
    outside = tmp_path / "outside.gguf"
    target.symlink_to(outside)
    with pytest.raises(QuantizeError, match="this is a link out of its folder"):
        check_target(target, 1, [])
    linked = tmp_path / "linked"
    linked.symlink_to(target.parent)
    check_target(linked / "other.gguf", 1, [])


def test_no_room_or_no_folder_is_said_before_anything_is_written(target, monkeypatch):
    usage = shutil.disk_usage(target.parent)._replace(free=5_000_000_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(QuantizeError, match=r"will have 6\.93 GB, the disk of .* has 5\.00 GB free"):
        check_target(target, 6_931_817_760, [])
    with pytest.raises(QuantizeError, match="there is no such folder"):
        check_target(target.parent / "none" / "a.gguf", 1, [])


@pytest.fixture
def small_disk():
    """The limit on a file's size stands in for the disk's."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_leaves_the_old_file(source, target, small_disk):
    target.write_text("old")
    with pytest.raises(QuantizeError, match=r"model\.gguf: it could not be written \(File too large\)"):
        quantize(source, "Q8_0", target)
    assert names(target.parent) == ["model.gguf"]
    assert target.read_text() == "old"
