"""A real ComfyUI server with this pack as its one custom node. Needs the environment."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import requests
import websocket

ROOT = Path(__file__).resolve().parent.parent
Progress = Callable[[str, int, int], None]  # node id, step, steps


class PromptError(RuntimeError):
    """A queued prompt ended in an error; `details` is ComfyUI's own account."""

    def __init__(self, details: dict[str, Any]):
        super().__init__(details.get("exception_message") or json.dumps(details))
        self.details = details


class ComfyServer:
    """A ComfyUI process of its own on a free port; a context manager.

    base: its base directory (models, input, output, custom_nodes), made where missing.
    """

    def __init__(self, comfyui: Path, base: Path, port: int = 0, extra: tuple[str, ...] = ()):
        self.base = base
        self.port = _free_port(port)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "comfyui.log"
        link_pack(base)
        device = () if shutil.which("nvidia-smi") or sys.platform == "darwin" else ("--cpu",)
        place = ("--base-directory", str(base), "--database-url", f"sqlite:///{base / 'user' / 'comfyui.db'}")
        options = (*place, "--port", str(self.port), "--disable-auto-launch", *device, *extra)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(comfyui / "main.py"), *options],
                cwd=comfyui,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )

    def __enter__(self) -> ComfyServer:
        try:
            self.wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_ready(self, seconds: float = 180) -> None:
        """Returns when the server answers. Raises RuntimeError with the end of its log where it does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/system_stats", timeout=5).ok:
                    return
            except requests.RequestException:
                time.sleep(0.3)
        raise RuntimeError(f"ComfyUI did not start; the end of {self.log}:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """Ends the process."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def run(self, workflow: dict[str, Any], on_progress: Progress | None = None) -> list[bytes]:
        """Queue an API-format workflow and wait; its pictures as PNG bytes, in the order of the workflow's nodes.

        Raises PromptError where ComfyUI refuses the workflow or a node fails.
        """
        client_id = uuid.uuid4().hex
        events = websocket.create_connection(f"ws://127.0.0.1:{self.port}/ws?clientId={client_id}", timeout=600)
        try:
            prompt_id = self.queue(workflow, client_id)
            while True:
                message = events.recv()
                if isinstance(message, str) and _is_over(json.loads(message), prompt_id, on_progress):
                    break
        finally:
            events.close()
        return self.pictures(prompt_id)

    def queue(self, workflow: dict[str, Any], client_id: str = "") -> str:
        """Queue an API-format workflow; its prompt id. Raises PromptError where ComfyUI refuses it."""
        body: dict[str, Any] = {"prompt": workflow, "client_id": client_id}
        answer = requests.post(f"{self.url}/prompt", json=body, timeout=60)
        if not answer.ok:
            raise PromptError(answer.json())
        return answer.json()["prompt_id"]

    def pictures(self, prompt_id: str) -> list[bytes]:
        """The pictures that a finished prompt saved or previewed, in the order of the workflow's nodes."""
        history = requests.get(f"{self.url}/history/{prompt_id}", timeout=60).json()[prompt_id]
        outputs, (_number, _id, workflow, *_) = history["outputs"], history["prompt"]
        images = [image for node in workflow for image in outputs.get(node, {}).get("images", ())]
        return [requests.get(f"{self.url}/view", params=image, timeout=60).content for image in images]


def _is_over(event: dict[str, Any], prompt_id: str, on_progress: Progress | None) -> bool:
    data = event["data"]
    if data.get("prompt_id") != prompt_id:
        return False
    if event["type"] == "execution_error":
        raise PromptError(data)
    if event["type"] == "execution_interrupted":
        raise PromptError(data | {"exception_message": "interrupted"})
    if event["type"] == "progress" and on_progress:
        on_progress(data["node"], data["value"], data["max"])
    return event["type"] == "executing" and data["node"] is None  # sent last, when the history is written


def link_pack(base: Path) -> None:
    """Make `base` a ComfyUI base directory with this checkout under custom_nodes."""
    for folder in ("custom_nodes", "input", "output", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "KontextKit"
    if os.path.lexists(link):
        if link.resolve() == ROOT:
            return
        link.rmdir() if sys.platform == "win32" else link.unlink()  # the checkout was moved or copied
    if sys.platform == "win32":
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True, stdout=subprocess.DEVNULL)
    else:
        link.symlink_to(ROOT, target_is_directory=True)


def _free_port(wish: int) -> int:
    """The wished port, or any for 0. Raises RuntimeError where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wish))
        except (OSError, OverflowError) as error:
            raise RuntimeError(f"port {wish} cannot be had ({error}); choose another with --port") from error
        return probe.getsockname()[1]
