"""Edits of the demo's world as files."""

import subprocess
import sys
from pathlib import Path

from kontextkit.engine.training.triples import find_triples, read_picture

SCRIPT = Path(__file__).resolve().parent.parent.parent / "demo" / "write_edits.py"


def write(folder, n):
    return subprocess.run([sys.executable, str(SCRIPT), str(folder), str(n)], capture_output=True, text=True)


def test_the_training_command_reads_what_it_writes(tmp_path):
    assert write(tmp_path / "edits", 12).returncode == 0
    edits = find_triples(tmp_path / "edits")
    assert len(edits) == 12
    assert {len(edit.references) for edit in edits} == {1, 2, 3}
    pictures = [read_picture(path) for path in (*edits[0].references, edits[0].result)]
    assert {tuple(picture.shape) for picture in pictures} == {(256, 256, 3)}
    again = write(tmp_path / "edits", 12)
    assert again.returncode == 2
    assert "is not empty" in again.stderr
