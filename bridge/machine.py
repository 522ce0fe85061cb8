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
from ..engine.tiers.detect import ADA, Machine, detect

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
    }


def installed(here: Machine) -> list[dict[str, Any]]:
    """What speeds the pack up: its name, whether it is there, and words on what to do where it is not."""
    device = comfy.model_management.get_torch_device()
    parts = [_part("Triton", find_spec("triton") is not None, _triton_words(here))]
    fp8 = here.kind == "cuda" and here.capability is not None and here.capability >= ADA
    parts.append(_part("FP8 arithmetic", fp8, "It needs an NVIDIA card of compute capability 8.9 (RTX 40) or newer."))
    for name in BACKENDS:
        reason = why_not(name, device)
        parts.append(_part(f"Attention: {name}", not reason, _attention_words(name, reason, here)))
    return parts


def _part(name: str, is_there: bool, words: str) -> dict[str, Any]:
    return {"name": name, "there": is_there, "words": "" if is_there else words}


def _triton_words(here: Machine) -> str:
    if here.kind != "cuda":
        return "It is for NVIDIA and AMD cards."
    return _pip("triton-windows" if sys.platform == "win32" else "triton")


def _attention_words(name: str, reason: str, here: Machine) -> str:
    if here.kind != "cuda":
        return "It needs an NVIDIA card."
    return _pip("sageattention") if name == "sage" else f"{reason}."


def _pip(package: str) -> str:
    """The command that installs it into ComfyUI's Python, in ComfyUI's folder; no path of this machine is told."""
    portable = "python_embeded" in sys.executable  # so spelled in ComfyUI's portable edition for Windows
    python = r"python_embeded\python.exe -s" if portable else "python"
    return f"{python} -m pip install {package}"
