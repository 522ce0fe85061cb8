"""Three tiers' workflows at full size, through a real server's API, under the memory of their cards.

    COMFYUI_PATH=... python benchmarks/tiers.py [--tiny] [--folder FOLDER] [--front-end FOLDER] [--out FILE]

Transformer, text encoders and VAE are random numbers of the real sizes. The cap is real: another process holds the
card's memory but for the cap before ComfyUI starts, and reads how much is free (memory_run.py). First every step is
computed; then the preset fast runs, whose steps are those that the demo model's edits compute (measured_maps.py): with
random weights what a cache would skip means nothing. The first prompt loads all files and encodes the text; the second
has another seed, and is what the next pictures take. A reference of the target's size, batch 1.
--tiny: the demo model in their place, four steps and no cap, to try the script.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from gguf_memory import Process
from loading import clip_l, t5xxl
from measured_maps import measured_maps
from memory_run import GB

CASES = (  # GB of the card, the guide's seconds
    ("80gb", 80, None),
    ("24gb_optimized", 24, 18),
    ("8gb_quality", 8, 32),
    ("8gb_low_memory", 6, 28),
)
CLIP_L, T5XXL, VAE = "text_encoders/clip_l.gguf", "text_encoders/t5xxl.gguf", "vae/ae.safetensors"
EMPTY = {"width": 512, "height": 512, "batch_size": 1, "color": 0x808080}
EXACT = {"preset": "custom", "threshold": 0.0}  # every step computed
FIXED_STEPS = Path(__file__).with_name("fixed_steps.py")  # a node, "FixedSteps"
Json = dict[str, Any]


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "tiers.json")
    parser.add_argument("--tiny", action="store_true", help="the demo model, to try the script")
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    parser.add_argument("--front-end", type=Path, help="a folder in place of ComfyUI's web page, where it has none")
    options = parser.parse_args()
    report.tiny_variant(options)
    report.import_comfyui()
    report.import_pack()
    rows = []
    with report.folder(options) as base:
        for slug, cap, guide in CASES:
            workflow = json.loads((report.ROOT / "workflows" / "api" / f"kontext_tier_{slug}.json").read_text())
            graph = prepared(base, workflow, options.tiny)
            rows += measure(base, graph, slug, None if options.tiny else cap, guide, options.front_end)
            report.save(options.out, rows, "tiers.py")
    report.write(options.out, rows, "tiers.py")


def prepared(base: Path, workflow: Json, tiny: bool) -> Json:
    """The workflow with a gray picture, and below the base folder the files that it names."""
    from kontextkit.devtools.stand_ins import api_with_stand_ins, write_stand_ins

    if tiny:
        write_stand_ins(base / "models")
        workflow = api_with_stand_ins(workflow, 4)
    else:
        write_files(base / "models", workflow)
    for node in workflow.values():
        if node["class_type"] == "LoadImage":  # which needs PyAV
            node["class_type"], node["inputs"] = "EmptyImage", EMPTY
        if node["class_type"] == "KontextOptimize":
            slices = {"attention": "sliced", "compile": "off"} if "low_memory" in json.dumps(workflow) else {}
            node["inputs"] |= EXACT | slices
        if node["class_type"] == "KontextLoadTextEncoders":
            node["inputs"] |= {"clip_l_name": Path(CLIP_L).name, "t5xxl_name": Path(T5XXL).name}
    return workflow


def write_files(models: Path, workflow: Json) -> None:
    """Random numbers under the names of the workflow, unless the files are there."""
    from kontextkit.devtools.flux_shapes import bfl_shapes
    from kontextkit.engine.whole_file import whole_file
    from random_files import FULL, mixed, write_bf16, write_gguf
    from safetensors.torch import save_file

    (name,) = (node["inputs"]["model_name"] for node in workflow.values() if "model_name" in node["inputs"])
    shapes, mix = bfl_shapes(**FULL), re.search(r"Q\d_K_M", name)
    writers: dict[str, Callable[[Path], None]] = {
        f"diffusion_models/{name}": lambda p: write_gguf(p, mixed(shapes, mix[0])) if mix else write_bf16(p, shapes),
        CLIP_L: lambda p: write_gguf(p, clip_l()),
        T5XXL: lambda p: write_gguf(p, t5xxl()),
        VAE: lambda p: save_file(autoencoder().state_dict(), p),
    }
    for file, write in writers.items():
        if not (models / file).exists():
            (models / file).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(models / file) as unfinished:
                write(unfinished)


def autoencoder() -> Any:
    """ComfyUI's own module for FLUX.1's VAE, of random numbers; its configuration as in comfy/sd.py."""
    import torch
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    sizes = {"z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4]}
    sizes |= {"double_z": True, "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    place = "comfy.ldm.modules.diffusionmodules.model"
    model = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": f"{place}.Encoder", "params": sizes},
        decoder_config={"target": f"{place}.Decoder", "params": sizes},
    )
    torch.manual_seed(0)
    with torch.no_grad():  # ComfyUI's layers leave them as memory was
        for weight in model.parameters():
            weight.normal_(std=weight[0].numel() ** -0.5) if weight.ndim > 1 else weight.fill_(1)
    return model


def with_fast(graph: Json) -> Json:
    """The same under the preset fast, with the steps that the demo model's edits compute."""
    graph = copy.deepcopy(graph)
    ((name, optimizer),) = ((name, node) for name, node in graph.items() if node["class_type"] == "KontextOptimize")
    for node in graph.values():
        node["inputs"] |= {key: ["fixed", 0] for key, value in node["inputs"].items() if value == [name, 0]}
    optimizer["inputs"]["preset"] = "fast"
    steps = ",".join(map(str, measured_maps()["fast"]))
    (of,) = (node["inputs"]["steps"] for node in graph.values() if node["class_type"] == "KSampler")
    graph["fixed"] = {"class_type": "FixedSteps", "inputs": {"model": [name, 0], "steps": steps, "of": of}}
    return graph


def seconds(server: Any, graph: Json, seed: int) -> float:
    """Of one prompt, which makes a picture."""
    for node in graph.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["seed"] = seed
    begin = time.perf_counter()
    assert server.run(graph)
    return time.perf_counter() - begin


def measure(
    base: Path, graph: Json, slug: str, cap: float | None, guide: float | None, front_end: Path | None
) -> list[Json]:
    """Rows of one tier: the first prompt, the second, a step of it, the preset fast, and the card's peak."""
    import requests
    from kontextkit.devtools.server import ComfyServer

    name, rows = f"tiers.{slug}", []
    (base / "custom_nodes").mkdir(parents=True, exist_ok=True)
    shutil.copy(FIXED_STEPS, base / "custom_nodes")
    holder = Process(["--hold"])
    free = holder.ask(None if cap is None else cap * GB)
    try:
        extra = ("--front-end-root", str(front_end.resolve())) if front_end else ()
        with ComfyServer(Path(os.environ["COMFYUI_PATH"]).resolve(), base.resolve(), extra=extra) as server:
            last = lambda: requests.get(f"{server.url}/kontextkit/runs", timeout=60).json()[-1]  # noqa: E731
            rows.append(report.row(f"{name}.first_seconds", seconds(server, graph, 0), "s", "with loading all files"))
            note = f"the guide says {guide} s" if guide else ""
            rows.append(report.row(f"{name}.seconds", seconds(server, graph, 1), "s", note))
            run = last()
            n_steps, whole = run["computed"], run["seconds"]
            rows.append(report.row(f"{name}.step_ms", 1e3 * whole / n_steps, "ms", f"{n_steps} steps"))
            if cap is not None:
                peak = (free - holder.ask("lowest")) / GB
                rows.append(report.row(f"{name}.peak_gb", peak, "GB", f"of a card of {cap} GB", goal=cap))
            fast = with_fast(graph)
            seconds(server, fast, 2)  # makes its kernels
            rows.append(report.row(f"{name}.fast.seconds", seconds(server, fast, 3), "s", "preset fast"))
            run = last()
            note = f"{run['computed']} computed, {run['kept']} with kept references, {run['skipped']} skipped"
            rows.append(
                report.row(f"{name}.fast.sampling_speedup", whole / run["seconds"], "times", note, better="higher")
            )
    except Exception as error:  # the next tier may go
        traceback.print_exc()
        print(*(base / "comfyui.log").read_text(errors="replace").splitlines()[-40:], sep="\n")
        rows.append(report.failed(f"{name}.failed", "s", f"{type(error).__name__}: {error}"[:300]))
    finally:
        holder.end()
    return rows


if __name__ == "__main__":
    main()
