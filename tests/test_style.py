"""Lint, format and type hints."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, cwd: Path = ROOT) -> None:
    result = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ruff_finds_nothing():
    run("ruff", "check", "--no-cache")


def test_ruff_would_format_nothing():
    run("ruff", "format", "--check", "--no-cache")


def test_mypy_finds_nothing(tmp_path):
    (tmp_path / "kontextkit").symlink_to(ROOT)  # the checkout's own folder name may be no Python name
    rooms = ("engine", "bridge", "nodes", "demo", "devtools")
    packages = [word for room in rooms for word in ("-p", f"kontextkit.{room}")]
    config = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache"))
    run("mypy", *config, *packages, cwd=tmp_path)
