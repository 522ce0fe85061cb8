"""The demo model in the place of the large files that the bundled workflows name, so that every workflow runs anywhere.

The transformer lies under the names of the large ones, as does a LoRA of small random numbers; text encoders and VAE
come from one KontextLoadDemo node. Pictures are SIDE pixels large, whatever the tier says.
"""

from __future__ import annotations

import copy
import filecmp
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "workflows" / "api"
LORA = "loras/FLUX.1-Turbo-Alpha.safetensors"
RANK = 4  # of the stand-in
DEMO_TRANSFORMER = ROOT / "demo" / "kontext_demo_bf16.safetensors"
DEMO_GGUF = ROOT / "demo" / "kontext_demo_q8_0.gguf"
PROMPT = "make the circle blue"  # in words that the demo model knows
SIDE = 256  # pixels, where FluxKontextImageScale and the like would make a megapixel

LOADER, PRECISION = "KontextLoadDemo", "BF16"
LAB, LAB_VALUES = "KontextQualityLab", "1"  # steps that it tries where few are wished for
ENCODERS = ("DualCLIPLoader", "KontextLoadTextEncoders")
_OUTPUTS = dict.fromkeys(ENCODERS, ("CLIP", 1)) | {"VAELoader": ("VAE", 2)}  # the loader's output in a node's place
TIER, STEPS = "KontextTier", 0  # and which of its outputs says how many
_SIZES = {2: SIDE, 3: SIDE, 8: (SIDE / 1024) ** 2}  # what other outputs of it stand for: width, height, megapixels
_SCALE = {"upscale_method": "area", "width": SIDE, "height": SIDE, "crop": "center"}


def write_stand_ins(models: Path) -> None:
    """Below the models folder: the demo's transformer, unless the very same file is there, and a LoRA."""
    workflows = [json.loads(path.read_text(encoding="utf-8")) for path in API.glob("*.json")]
    names = {node["inputs"].get("model_name") for workflow in workflows for node in workflow.values()}
    for path in (models / "diffusion_models" / name for name in names if isinstance(name, str)):
        demo = DEMO_GGUF if path.suffix == ".gguf" else DEMO_TRANSFORMER
        if not (path.exists() and filecmp.cmp(path, demo, shallow=False)):
            _write(path, partial(shutil.copyfile, demo))
    if not (models / LORA).exists():
        _write(models / LORA, _write_lora)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` make a file that is there only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    write(unfinished)
    unfinished.replace(path)


def _write_lora(path: Path) -> None:
    """Small random factors for every Linear of the demo's blocks."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    factors = {}
    with safe_open(str(DEMO_TRANSFORMER), "pt") as file:
        for name in file.keys():  # noqa: SIM118  no dictionary
            shape = file.get_slice(name).get_shape()
            if "_blocks." in name and len(shape) == 2:
                n_out, n_in = shape
                for part, size in (("lora_A", (RANK, n_in)), ("lora_B", (n_out, RANK))):
                    key = f"diffusion_model.{name.removesuffix('weight')}{part}.weight"
                    factors[key] = torch.randn(size, generator=generator) * 0.01
    save_file(factors, str(path))


def api_with_stand_ins(workflow: dict[str, Any], steps: int | None = None) -> dict[str, Any]:
    """An API-format workflow that runs on the demo model, in so many steps where they are given."""
    workflow = copy.deepcopy(workflow)
    moved = {name: _OUTPUTS[node["class_type"]][1] for name, node in workflow.items() if node["class_type"] in _OUTPUTS}
    for node in workflow.values():
        inputs = node["inputs"]
        for key, value in inputs.items():
            if not isinstance(value, list):
                continue
            if value[0] in moved:
                inputs[key] = ["demo", moved[value[0]]]
            if workflow[value[0]]["class_type"] == TIER:
                inputs[key] = steps if value[1] == STEPS and steps else _SIZES.get(value[1], value)
        if isinstance(inputs.get("steps"), int) and steps:  # a link stays
            inputs["steps"] = steps
            if node["class_type"] == LAB:
                inputs["values"] = LAB_VALUES
        if moved and node["class_type"] == "CLIPTextEncode":
            inputs["text"] = PROMPT
        if node["class_type"] == "FluxKontextImageScale":
            node["class_type"] = "ImageScale"
            inputs |= _SCALE
        if node["class_type"] == "KontextCropToMask":
            inputs["size"] = SIDE
    for name in moved:
        del workflow[name]
    if moved:
        workflow["demo"] = {"class_type": LOADER, "inputs": {"precision": PRECISION}}
    return workflow


def ui_with_stand_ins(workflow: dict[str, Any], steps: int | None = None) -> dict[str, Any]:
    """A UI-format workflow that runs on the demo model, in so many steps where they are given."""
    workflow = copy.deepcopy(workflow)
    nodes = workflow["nodes"]
    for node in nodes:
        if node["type"] == "KSampler" and steps:
            node["widgets_values"][2] = steps
        if node["type"] == LAB and steps:
            node["widgets_values"][1:3] = LAB_VALUES, steps
        if node["type"] == TIER:
            for i, value in (_SIZES | ({STEPS: steps} if steps else {})).items():
                _set(workflow, node["outputs"][i], value)
        if node["type"] == "KontextQuantize" and steps:
            node["widgets_values"][-1] = steps
        if node["type"] == "FluxKontextImageScale":
            node["type"], node["widgets_values"] = "ImageScale", list(_SCALE.values())
            node["properties"] = {}
        if node["type"] == "KontextCropToMask":
            node["widgets_values"][-1] = SIDE
    moved = [node for node in nodes if node["type"] in _OUTPUTS]
    if not moved:
        return workflow
    demo = _ui_loader(moved, workflow["last_node_id"] + 1)
    for link in workflow["links"]:  # [id, from node, from output, to node, to input, type]
        origin = next((node for node in moved if node["id"] == link[1]), None)
        if origin:
            link[1:3] = demo["id"], _OUTPUTS[origin["type"]][1]
    for node in nodes:
        if node["type"] == "CLIPTextEncode":
            node["widgets_values"] = [PROMPT]
    workflow["nodes"] = [node for node in nodes if node not in moved] + [demo]
    workflow["last_node_id"] = demo["id"]
    return workflow


def _set(workflow: dict[str, Any], output: dict[str, Any], value: float) -> None:
    """A UI-format workflow's widgets that are linked to the output get the value instead."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link in [link for link in workflow["links"] if link[0] in output["links"]]:
        workflow["links"].remove(link)
        _, _, _, target, index, _ = link
        inputs = nodes[target]["inputs"]
        before = [each["name"] for each in inputs[:index] if "widget" in each]
        inputs[index]["link"] = None
        nodes[target]["widgets_values"][len(before) + ("seed" in before)] = value  # a seed has two
    output["links"] = []


def _ui_loader(moved: list[dict[str, Any]], node_id: int) -> dict[str, Any]:
    """A KontextLoadDemo node where the first of the moved nodes stood, with the links of all."""
    links: dict[str, list[int]] = {"MODEL": [], "CLIP": [], "VAE": []}
    for node in moved:
        links[_OUTPUTS[node["type"]][0]] += node["outputs"][0]["links"]
    widget = {"name": "precision", "type": "COMBO", "widget": {"name": "precision"}, "link": None}
    return {
        "id": node_id,
        "type": LOADER,
        "pos": moved[0]["pos"],
        "size": [340, 102],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [widget],
        "outputs": [{"name": name, "type": name, "links": those} for name, those in links.items()],
        "properties": {"Node name for S&R": LOADER},
        "widgets_values": [PRECISION],
    }
