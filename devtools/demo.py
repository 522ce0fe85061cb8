"""The demo: a real ComfyUI edits a picture with the bundled workflow and writes the result."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from PIL import Image, ImageDraw

from .environment import say
from .server import ROOT, ComfyServer
from .stand_ins import api_with_stand_ins, ui_with_stand_ins, write_stand_ins

WORKFLOW = ROOT / "workflows" / "api" / "kontext_edit.json"
UI_WORKFLOW = ROOT / "workflows" / "kontext_edit.json"
STEPS = 8


def main() -> None:
    """Command line: --comfyui FOLDER, --base FOLDER, --serve PORT to stay up instead of editing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--serve", type=int, metavar="PORT")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say("using small model files with random weights: no trained demo model exists yet, the result will be noise")
    write_stand_ins(options.base / "models")
    draw_example(options.base / "input" / "example.png")
    say("starting ComfyUI")
    try:
        with ComfyServer(options.comfyui, options.base, options.serve or 0) as server:
            serve(server) if options.serve else edit(server)
    except KeyboardInterrupt:
        say("stopped")
    except RuntimeError as error:
        sys.exit(f"[dev] {error}")


def serve(server: ComfyServer) -> None:
    """Stay up until Ctrl-C, with the workflow for the small files among the user's own."""
    mine = server.base / "user" / "default" / "workflows" / "kontext_edit_with_random_weights.json"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(json.dumps(ui_with_stand_ins(json.loads(UI_WORKFLOW.read_text()), STEPS)))
    say(f"ComfyUI with KontextKit: {server.url}  (log: {server.log}; Ctrl-C ends it)")
    say(f"to try it, open {mine.stem} in the sidebar's Workflows; its model files are random, under the real names")
    server.process.wait()


def edit(server: ComfyServer) -> None:
    """Queue the workflow, show its steps, write the pictures."""
    seen: list[tuple[int, float]] = []  # ComfyUI reports most steps, not each

    def show(_node: str, step: int, steps: int) -> None:
        seen.append((step, time.perf_counter()))
        say(f"step {step} of {steps}")

    say(f"queueing {WORKFLOW.relative_to(ROOT)}")
    begin = time.perf_counter()
    pictures = server.run(api_with_stand_ins(json.loads(WORKFLOW.read_text()), STEPS), show)
    seconds = time.perf_counter() - begin
    folder = ROOT / ".dev" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    before = folder / "before.png"
    before.write_bytes((server.base / "input" / "example.png").read_bytes())
    say(f"before: {before}")
    for number, picture in enumerate(pictures):
        path = folder / f"after{number or ''}.png"
        path.write_bytes(picture)
        say(f"after:  {path}")
    (first_step, first), (last_step, last) = seen[0], seen[-1]
    pace = (last - first) / (last_step - first_step)
    say(f"{pace:.2f} s a step, {seconds:.1f} s for the edit, on a tiny model with random weights: the picture is noise")


def draw_example(path: Path) -> None:
    """A picture to edit: a red ball on a green field under a blue sky."""
    if path.exists():
        return
    picture = Image.new("RGB", (256, 256), (120, 180, 235))
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 165, 256, 256), fill=(90, 160, 80))
    pen.ellipse((90, 110, 170, 190), fill=(205, 50, 45))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


if __name__ == "__main__":
    main()
