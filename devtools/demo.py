"""The demo: a real ComfyUI edits a picture with the bundled demo model and workflow, and writes the result."""

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
from .stand_ins import ui_with_stand_ins, write_stand_ins

WORKFLOW = ROOT / "workflows" / "api" / "kontext_demo.json"
PICTURES = ("before", "after", "side_by_side")  # in the order of the workflow's nodes


def main() -> None:
    """Command line: --comfyui FOLDER, --base FOLDER, --serve PORT to stay up instead of editing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--serve", type=int, metavar="PORT")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say("starting ComfyUI")
    try:
        with ComfyServer(options.comfyui, options.base, options.serve or 0) as server:
            serve(server) if options.serve else edit(server)
    except KeyboardInterrupt:
        say("stopped")
    except RuntimeError as error:
        sys.exit(f"[dev] {error}")


def serve(server: ComfyServer) -> None:
    """Stay up until Ctrl-C, with every bundled workflow, on the demo model, among the user's own."""
    write_stand_ins(server.base / "models")
    draw_example(server.base / "input" / "example.png")
    mine = server.base / "user" / "default" / "workflows"
    mine.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "workflows").glob("*.json")):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        (mine / path.name).write_text(json.dumps(ui_with_stand_ins(workflow)), encoding="utf-8")
    say("model files under the names of large ones are copies of the demo model, so that every workflow runs")
    say(f"ComfyUI with KontextKit: {server.url}  (log: {server.log}; Ctrl-C ends it)")
    say("to try it, open kontext_demo in the sidebar's Workflows; the workflows there run on the small demo model")
    server.process.wait()


def edit(server: ComfyServer) -> None:
    """Queue the workflow, show its steps, write the pictures."""
    seen: list[tuple[int, float]] = []  # ComfyUI reports most steps, not each

    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    (sampler,) = (node_id for node_id, node in workflow.items() if node["class_type"] == "KSampler")

    def show(node_id: str, step: int, steps: int) -> None:
        if node_id != sampler:  # loaders report bytes
            return
        seen.append((step, time.perf_counter()))
        if step % 7 == 0:
            say(f"step {step} of {steps}")

    (prompt,) = (node["inputs"]["text"] for node in workflow.values() if node["class_type"] == "CLIPTextEncode")
    say(f'queueing {WORKFLOW.relative_to(ROOT)}: "{prompt}"')
    begin = time.perf_counter()
    pictures = server.run(workflow, show)
    seconds = time.perf_counter() - begin
    folder = ROOT / ".dev" / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in zip(PICTURES, pictures, strict=True):
        path = folder / f"{name}.png"
        path.write_bytes(picture)
        say(f"{name.replace('_', ' ')}: {path}")
    (first_step, first), (last_step, last) = seen[0], seen[-1]
    pace = (last - first) / (last_step - first_step)
    say(f"{pace:.2f} s a step, {seconds:.1f} s for the edit with loading, on the demo model")


def draw_example(path: Path) -> None:
    """A picture to edit, of the demo model's world: a red circle, around it a mask, and a white square on yellow."""
    scale = 4  # drawn larger, for smooth edges
    picture = Image.new("RGB", (256 * scale, 256 * scale), (247, 222, 56))
    pen = ImageDraw.Draw(picture)
    pen.ellipse([n * scale for n in (40, 120, 124, 204)], fill=(219, 38, 36))
    pen.rectangle([n * scale for n in (150, 50, 218, 118)], fill=(245, 245, 242))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture.resize((256, 256), Image.Resampling.BOX)
    alpha = Image.new("L", picture.size, 255)
    ImageDraw.Draw(alpha).rectangle((32, 112, 131, 211), fill=0)  # Load Image makes a mask of what is transparent
    picture.putalpha(alpha)
    picture.save(path)


if __name__ == "__main__":
    main()
