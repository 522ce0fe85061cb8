"""The command quality_lab.py on the demo model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(comfyui, *words):
    environment = os.environ | {"COMFYUI_PATH": str(comfyui)}
    line = [sys.executable, str(ROOT / "quality_lab.py"), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


@pytest.mark.newest
def test_the_command_measures_the_demo_model(comfyui, tmp_path):
    result = command(comfyui, tmp_path / "a", "precision", "--demo", "--edits", 1, "--steps", 2, "--values", "Q8_0")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| BF16 (baseline) | 1.0000 |" in result.stdout
    assert "SSIM to truth" in (tmp_path / "a.md").read_text()
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.newest
def test_the_command_refuses_in_a_sentence(comfyui, tmp_path):
    for words, error in (
        (("steps", "--demo", "--values", "x"), "values has 'x'"),
        (("steps",), "expected --demo, or all files of a model"),
        (("steps", "--demo", "--prompt", "make it red"), "expected at least one --picture and one --prompt"),
    ):
        result = command(comfyui, tmp_path / "a", *words)
        assert result.returncode != 0
        assert error in result.stderr
        assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
