"""Everything a developer of KontextKit runs, in one command; needs only Python 3.10 or newer.

python3 dev.py demo     edit a picture in a real ComfyUI and print where it lies
python3 dev.py test     run all tests on the newest supported ComfyUI, those that meet ComfyUI on the oldest too
python3 dev.py serve    start ComfyUI with this pack, for you to try
python3 dev.py bench    measure the optimizer, in full on a card of 80 GB, else a tiny model on the CPU

Words after `test` go to pytest. $COMFYUI_PATH names a ComfyUI of your own, $KONTEXTKIT_CACHE the folder for downloads,
$CHROMIUM a browser.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

if sys.version_info < (3, 10):  # noqa: UP036 - whoever reads this message has not installed the package
    sys.exit(f"dev.py needs Python 3.10 or newer, this is {sys.version.split()[0]}")

from devtools.environment import NEWEST, OLDEST, RELEASES, ROOT, find_browser, prepare, prepare_browser, say

WITH_COMFYUI = ["tests/comfy", "tests/browser"]


def main() -> int:
    """The exit status of what was run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=("demo", "test", "serve", "bench"))
    parser.add_argument("--comfyui", choices=RELEASES, metavar="VERSION", help=f"one of {', '.join(RELEASES)}")
    parser.add_argument("--port", type=int, default=8188, help="for serve, 8188 by default")
    options, rest = parser.parse_known_args()
    if options.command == "test":
        return test([options.comfyui] if options.comfyui else [NEWEST, OLDEST], rest)
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    python, comfyui = prepare(options.comfyui or NEWEST)
    if options.command == "bench":
        with running(python, "devtools.bench", "--comfyui", str(comfyui)) as process:
            return process.wait()
    base = ROOT / ".dev" / "base"
    extra = ["--serve", str(options.port)] if options.command == "serve" else []
    with running(python, "devtools.demo", "--comfyui", str(comfyui), "--base", str(base), *extra) as process:
        return process.wait()


def test(versions: list[str], pytest_arguments: list[str]) -> int:
    """All tests on the first version, those that meet it on the others too; $COMFYUI_PATH names the only one."""
    ready = [prepare(version) for version in (versions[:1] if os.environ.get("COMFYUI_PATH") else versions)]
    jobs = [(ready[0], pytest_arguments or WITH_COMFYUI)]
    jobs += [(each, pytest_arguments or [*WITH_COMFYUI, "-m", "not newest"]) for each in ready[1:]]
    if not pytest_arguments:
        jobs.append((ready[0], [f"--ignore={folder}" for folder in WITH_COMFYUI]))
    n_threads = max(1, (os.cpu_count() or 1) // len(jobs))  # threads of processes that wait for cores wait long
    with ExitStack() as stack:
        started = []
        for (python, comfyui), arguments in jobs:
            prepare_browser(python)
            output = stack.enter_context(tempfile.TemporaryFile()) if started else None
            title = f"pytest {' '.join(arguments)} on {comfyui.name}"
            say(title + ("; its words follow" if started else ""))
            environment = {"COMFYUI_PATH": str(comfyui), "CHROMIUM": find_browser() or ""}
            environment["OMP_NUM_THREADS"] = str(n_threads)
            process = stack.enter_context(running(python, "pytest", *arguments, environment=environment, output=output))
            started.append((title, process, output))
        for title, process, output in started:
            process.wait()
            if output:
                say(title)
                output.seek(0)
                sys.stdout.buffer.write(output.read())
                sys.stdout.flush()
        return max(abs(process.returncode) for _, process, _ in started)  # negative where a signal ended it


@contextmanager
def running(
    python: Path,
    module: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    output: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A module in the environment, from the checkout's root; told to end where it still runs at the end."""
    command = [str(python), "-m", module, *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | (environment or {}), stdout=output, stderr=output)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()  # it stops its own ComfyUI first


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except subprocess.CalledProcessError as failure:
        sys.exit(f"[dev] this command failed, its words stand above; run again to retry: {failure.cmd}")
