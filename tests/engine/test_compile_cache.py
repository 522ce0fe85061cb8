"""Compiled blocks on disk: the next process finds them; never read where others can write, never half there."""

import errno
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from kontextkit.engine.flux import compile_cache
from kontextkit.engine.flux.compile_cache import CompileCache

ROOT = Path(__file__).resolve().parents[2]
POSIX = pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows keeps user folders private itself")


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A cache whose artifacts are these bytes, and what was loaded of them."""
    loaded = []
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"artifacts", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", lambda content: loaded.append(content) or loaded)
    cache = CompileCache(tmp_path / "compiled", "default")
    cache.loaded = loaded
    return cache


def files(cache):
    return sorted(path.name for path in cache.folder.iterdir())


def test_what_was_saved_is_loaded(stored):
    assert not stored.load()  # nothing there yet, and nothing said
    assert stored.save()
    assert files(stored) == [stored.path.name]
    assert stored.load()
    assert stored.loaded == [b"artifacts"]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_a_damaged_file_is_removed_with_a_line(stored, damage, caplog):
    stored.save()
    stored.path.write_bytes(damage(stored.path.read_bytes()))
    assert not stored.load()
    assert stored.loaded == []
    assert not stored.path.exists()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "damaged" in caplog.text


@POSIX
@pytest.mark.parametrize("which", ["folder", "path"])
def test_what_others_could_have_written_is_not_read(stored, which, caplog):
    stored.save()
    place = getattr(stored, which)
    place.chmod(place.stat().st_mode | 0o020)
    assert not stored.load()
    assert stored.loaded == []
    assert "others may write" in caplog.text


@POSIX
def test_only_this_user_can_read_and_write_it(stored):
    stored.save()
    assert stored.folder.stat().st_mode & 0o077 == 0
    assert stored.path.stat().st_mode & 0o077 == 0


def test_a_full_disk_leaves_the_old_file_and_a_line(stored, monkeypatch, caplog):
    stored.save()
    before = stored.path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(compile_cache.os, "replace", full)
    assert not stored.save()
    assert files(stored) == [stored.path.name]
    assert stored.path.read_bytes() == before
    assert "No space left" in caplog.text


def test_a_folder_that_cannot_be_made_is_told(tmp_path, stored, caplog):
    (tmp_path / "file").write_text("")
    stored.folder = tmp_path / "file" / "compiled"
    assert not stored.save()
    assert "not written" in caplog.text


def test_the_oldest_make_room(stored, monkeypatch):
    monkeypatch.setattr(compile_cache, "MOST_BYTES", 100)
    stored.folder.mkdir(mode=0o700)
    for age, name in enumerate(("new", "old")):
        path = stored.folder / f"{name}{compile_cache.SUFFIX}"
        path.write_bytes(bytes(60))
        os.utime(path, (1000 - age, 1000 - age))
    assert stored.save()
    assert files(stored) == sorted([f"new{compile_cache.SUFFIX}", stored.path.name])


def test_another_mode_or_machine_has_another_file(tmp_path, monkeypatch):
    one = CompileCache(tmp_path, "default").path
    assert CompileCache(tmp_path, "max-autotune-no-cudagraphs").path != one
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert CompileCache(tmp_path, "default").path != one


def test_the_next_process_finds_real_artifacts(tmp_path):
    script = textwrap.dedent(f"""
        import importlib.util, json, sys
        root = {str(ROOT)!r}
        rooms = {{"submodule_search_locations": [root]}}
        spec = importlib.util.spec_from_file_location("kontextkit", root + "/__init__.py", **rooms)
        sys.modules["kontextkit"] = importlib.util.module_from_spec(spec)
        import pathlib, torch
        from torch._dynamo.utils import counters
        from kontextkit.engine.flux.compile_cache import CompileCache
        cache = CompileCache(pathlib.Path({str(tmp_path / "compiled")!r}), "default")
        found = cache.load()
        with torch.inference_mode():
            torch.compile(lambda x: (x * 2).sin() + 1, dynamic=True, fullgraph=True)(torch.ones(8))
        print(json.dumps([found, counters["inductor"]["fxgraph_cache_hit"], cache.save()]))
    """)
    results = []
    for number in range(2):
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"own_{number}")}
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout.splitlines()[-1]))
    assert results == [[False, 0, True], [True, 1, True]]
