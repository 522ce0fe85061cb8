"""One step from GGUF files beside BF16, eager and with compiled blocks, and beside ComfyUI's own and ComfyUI-GGUF.

    COMFYUI_PATH=... python benchmarks/gguf_steps.py [--tiny] [--mixes Q4_K_M ...] [--peer FOLDER]
        [--folder FOLDER] [--out FILE]

1024x1024 target, one 1024x1024 reference, 512 text tokens, random weights, everything on the card. Medians of
synchronized forward passes, the models in turns. --peer: a checkout of https://github.com/city96/ComfyUI-GGUF.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import torch
from random_files import COMPUTE, MIXES, full_step, mixed, write_bf16, write_gguf

GOAL = 1.05


def main() -> None:
    """Command line."""
    parser = report.parser(__doc__, "gguf_steps.json")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES), metavar="MIX")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--folder", type=Path, help="where the files are kept and found again")
    options = parser.parse_args()
    report.import_comfyui()
    report.import_pack()
    shapes, arguments = full_step(options.tiny)
    with report.folder(options) as folder, torch.inference_mode():
        ours, peers = load_all(folder, shapes, options.mixes, options.peer)
        eager = medians({name: lambda m=model: m(**arguments) for name, model in (ours | peers).items()})
        compiled = medians({name: compiled_step(model, arguments) for name, model in ours.items()})
    rows = [report.row(f"gguf.{name}.step_ms.eager", ms, "ms") for name, ms in eager.items()]
    rows += [report.row(f"gguf.{name}.step_ms.compiled", ms, "ms") for name, ms in compiled.items()]
    for mix in map(str.lower, options.mixes):
        goal = GOAL if mix == "q4_k_m" else None
        rows.append(report.row(f"gguf.{mix}.step_ratio.eager", eager[mix] / eager["bf16"], "ratio", goal=goal))
        rows.append(report.row(f"gguf.{mix}.step_ratio.compiled", compiled[mix] / compiled["bf16"], "ratio", goal=goal))
    if "comfyui_gguf_q4_k_m" in eager:
        ratio = eager["comfyui_gguf_q4_k_m"] / eager["comfyui_bf16"]
        rows.append(report.row("gguf.peer.step_ratio", ratio, "ratio"))
    report.write(options.out, rows, "gguf_steps.py", "--mixes", *options.mixes, *["--peer FOLDER"] * bool(options.peer))


def load_all(
    folder: Path, shapes: dict[str, Any], mixes: list[str], peer: Path | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({name: diffusion model} of ours, of others), all on the card. The peer takes the Q4_K_M file."""
    import comfy.model_management as management
    import comfy.sd
    from kontextkit.bridge.model import load

    dtype = str(COMPUTE).removeprefix("torch.")
    plain = folder / "bf16.safetensors"
    write_bf16(plain, shapes)
    patchers = {"bf16": load(plain, dtype), "comfyui_bf16": comfy.sd.load_diffusion_model(str(plain))}
    for mix in mixes:
        if not (folder / f"{mix}.gguf").exists():
            write_gguf(folder / f"{mix}.gguf", mixed(shapes, mix))
        patchers[mix.lower()] = load(folder / f"{mix}.gguf", dtype)
    if peer:
        patchers["comfyui_gguf_q4_k_m"] = load_with_peer(peer, folder, "Q4_K_M.gguf")
    management.load_models_gpu(list(patchers.values()), force_full_load=True)
    models = {name: patcher.model.diffusion_model for name, patcher in patchers.items()}
    others = {name: models.pop(name) for name in list(models) if name.startswith("comfyui")}
    return models, others


def load_with_peer(peer: Path, folder: Path, name: str) -> Any:
    """ComfyUI-GGUF's own loader node."""
    import folder_paths

    spec = importlib.util.spec_from_file_location("peer", peer / "__init__.py", submodule_search_locations=[str(peer)])
    assert spec
    assert spec.loader
    package = sys.modules["peer"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    for key in ("unet", "diffusion_models", "unet_gguf"):
        folder_paths.add_model_folder_path(key, str(folder))
    (patcher,) = package.NODE_CLASS_MAPPINGS["UnetLoaderGGUF"]().load_unet(name)
    return patcher


def medians(steps: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Milliseconds of each."""
    return {name: 1e3 * statistics.median(seconds) for name, seconds in report.in_turns(steps).items()}


def compiled_step(hosted: Any, arguments: dict[str, Any]) -> Callable[[], Any]:
    """One pass with every block through Inductor."""
    from kontextkit.engine.training.flow_matching import CompiledBlocks, Conditions, velocity

    a = arguments
    given = Conditions(a["context"], a["y"], a["guidance"], a["ref_latents"])
    hooks = CompiledBlocks()
    return lambda: velocity(hosted.transformer, a["x"], a["timestep"], given, hooks)


if __name__ == "__main__":
    main()
