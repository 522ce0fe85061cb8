"""This machine: its card and memory, its tier, how fast it is, what is installed."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from typing import Any

import comfy.model_management
import torch

from ..engine.attention.backends import BACKENDS, why_not
from ..engine.quant.fp8 import CAPABILITY
from ..engine.tiers.detect import Machine, detect
from ..engine.tiers.tiers import TIERS, USE_CASES

PRODUCT = {"cpu": (torch.float32, 1024)}  # dtype and size of the timed product, by kind of device
ON_CARD = (torch.bfloat16, 4096)
TURNS = 5


@cache
def machine() -> Machine:
    """What ComfyUI computes on."""
    device = comfy.model_management.get_torch_device()
    host = comfy.model_management.get_total_memory(torch.device("cpu"))
    if device.type == "cpu":
        return Machine("cpu", f"the processor, {os.cpu_count()} cores", 0, host)
    if device.type == "cuda":
        capability = None if torch.version.hip else torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        return Machine("cuda", name, comfy.model_management.get_total_memory(device), host, capability)
    name = comfy.model_management.get_torch_device_name(device)
    return Machine(device.type, name, comfy.model_management.get_total_memory(device), host)


@cache
def product_tflops() -> float | None:
    """Speed of a plain product on ComfyUI's device, timed once in some milliseconds; None where it does not run."""
    device = comfy.model_management.get_torch_device()
    dtype, n = PRODUCT.get(device.type, ON_CARD)
    try:
        a = torch.ones(n, n, dtype=dtype, device=device)
        turns = []
        for _ in range(1 + TURNS):
            begin = time.perf_counter()
            checked = (a @ a)[0, 0].item()  # waits for the card
            turns.append(time.perf_counter() - begin)
        assert checked > 0
    except (RuntimeError, TypeError):  # no such product on this device, or no room for it beside what runs
        return None
    return 2 * n**3 / min(turns[1:]) / 1e12


def facts() -> dict[str, Any]:
    """For the sidebar: the machine, its tier and why, and what is installed."""
    here = machine()
    found = detect(here)
    return {
        "machine": asdict(here) | {"system": platform.system(), "python": platform.python_version()},
        "torch": torch.__version__,
        "tier": {"name": found.tier.name, "slug": found.tier.slug, "words": found.tier.words},
        "reasons": found.reasons,
        "installed": installed(here),
        "workflows": {
            "By machine": [_workflow(f"tier_{tier.slug}", tier.name, tier.words) for tier in TIERS.values()],
            "By purpose": [_workflow(case.slug, case.name.capitalize(), case.words) for case in USE_CASES.values()],
        },
    }


def _workflow(slug: str, title: str, words: str) -> dict[str, str]:
    return {"name": f"kontext_{slug}", "title": title, "words": words}


def installed(here: Machine) -> list[dict[str, Any]]:
    """What speeds the pack up: name, whether it is there, and where not the command that brings it, or words why."""
    device = comfy.model_management.get_torch_device()
    triton = "triton-windows" if sys.platform == "win32" else "triton"
    is_new = here.capability is not None and here.capability >= CAPABILITY
    parts = [
        _part("Triton", find_spec("triton") is not None, here, triton),
        _part("FP8 arithmetic", is_new, here, words="The card has no FP8 units: RTX 40, H100 and newer have."),
    ]
    for name in BACKENDS:
        reason, package = why_not(name, device), "sageattention" if name == "sage" else ""
        parts.append(_part(f"Attention: {name}", not reason, here, package, f"{reason}."))
    return parts


def _part(name: str, there: bool, here: Machine, package: str = "", words: str = "") -> dict[str, Any]:
    part = {"name": name, "there": there, "command": "", "words": ""}
    if not there and here.kind != "cuda":
        part["words"] = "It needs a card by NVIDIA."
    elif not there:
        part |= {"command": pip_install(package) if package else "", "words": words}
    return part


def pip_install(package: str) -> str:
    """The command that brings it into ComfyUI's Python, given in ComfyUI's folder; no path of this machine is told."""
    portable = "python_embeded" in sys.executable  # so spelled in ComfyUI's portable edition for Windows
    python = r"python_embeded\python.exe -s" if portable else "python"
    return f"{python} -m pip install {package}"
