"""One process of gguf_memory.py: writes a file, samples, loads and unloads, or holds the card's memory.

The job is a line of JSON on standard input, the result one on standard output. With --hold there are many: a number of
bytes, or null, to hold all memory but that, and 'lowest' for the least that was free since.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import report

GB = 1e9
SLOWED = "Q4_K_M"
QUARTER = {"depth": 5, "single": 10}  # of the blocks
N_STEPS, N_LOADS = 5, 20
RELEASED = 8 << 20  # bytes: the last run is gone from the card when no more than this is missing
WATCH = 3e-3  # seconds between two readings of the card's free memory
Result = dict[str, Any]


def main() -> None:
    """Imports, then the job from standard input; its result goes to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--hold", "--dynamic", "--tiny"):
        parser.add_argument(option, action="store_true")
    options = parser.parse_args()
    if options.hold:
        hold()
        return
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    if options.dynamic:
        import comfy_aimdo.control

        comfy_aimdo.control.init(nvml_pressure=True)
    import cuda_malloc  # noqa: F401  ComfyUI's choice of allocator, before torch
    import diffusers.models.transformers.transformer_flux  # noqa: F401  takes seconds
    import torch

    assert not torch.cuda.is_initialized()  # the card belongs to the run before
    job = json.loads(sys.stdin.readline())
    report.import_comfyui()
    if options.dynamic:
        report.turn_on_dynamic_vram()
    report.import_pack()
    result = {"write": write, "sample": sample, "cycle": cycle}[job["do"]](job, options.tiny)
    print(json.dumps(result))


def hold() -> None:
    """Answers on standard input: a number of bytes or null, hold all but that; 'lowest', the least free since."""
    import torch

    if not torch.cuda.is_available():
        for _ in sys.stdin:
            print("NaN", flush=True)
        return
    torch.zeros(1, device="cuda")  # this process's own context is no part of the cap
    at_first, _ = torch.cuda.mem_get_info()
    lowest, held = at_first, None

    def watch() -> None:
        nonlocal lowest
        while True:
            lowest = min(lowest, torch.cuda.mem_get_info()[0])
            time.sleep(WATCH)

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        question = json.loads(line)
        if question == "lowest":
            print(lowest, flush=True)
            continue
        held = None
        torch.cuda.empty_cache()
        deadline = time.perf_counter() + 10
        while torch.cuda.mem_get_info()[0] < at_first - RELEASED and time.perf_counter() < deadline:
            time.sleep(0.05)  # until the last run's memory is given back
        if question is not None:
            held = torch.empty(int(torch.cuda.mem_get_info()[0] - question), dtype=torch.uint8, device="cuda")
        lowest, _ = torch.cuda.mem_get_info()
        print(lowest, flush=True)
    del held


def write(job: Result, tiny: bool) -> Result:
    """A file of random blocks."""
    from kontextkit.devtools.flux_shapes import bfl_shapes
    from random_files import FULL, TINY, mixed, write_gguf

    sizes, mix = TINY if tiny else FULL, job["name"]
    if mix == "quarter":
        sizes, mix = sizes if tiny else sizes | QUARTER, SLOWED
    write_gguf(Path(job["path"]), mixed(bfl_shapes(**sizes), mix))
    return {}


class Run:
    """A MODEL from the pack's loader, and what samples it."""

    def __init__(self, job: Result, tiny: bool):
        import torch
        from kontextkit.bridge.model import load
        from random_files import FULL, TINY

        sizes, generator = TINY if tiny else FULL, torch.Generator().manual_seed(0)
        latent = (1, 16, job["side"], job["side"])
        self.patcher = load(job["path"])
        self.noise, reference = (torch.randn(latent, generator=generator) for _ in range(2))
        context = torch.randn(1, 512, sizes["text"], generator=generator)
        pooled = torch.randn(1, sizes["pooled"], generator=generator)
        values = {"pooled_output": pooled, "guidance": 2.5, "reference_latents": [reference]}
        self.conditioning = [[context, values]]

    def sample(self, n_steps: int) -> tuple[Any, list[float]]:
        """Picture (latent) and seconds of each step, the first with all that goes before it."""
        import sampling
        import torch

        times = [time.perf_counter()]

        def after_step(*_: object) -> None:
            report.synchronize()
            times.append(time.perf_counter())

        with torch.inference_mode():
            picture = sampling.sample(self.patcher, self.noise, n_steps, self.conditioning, after_step)
        end_of_node()
        return picture, [after - before for before, after in pairwise(times)]


def end_of_node() -> None:
    """What ComfyUI's execution.py does after each node where dynamic VRAM is on."""
    import comfy.memory_management

    if comfy.memory_management.aimdo_enabled:
        import comfy.model_management
        import comfy.model_prefetch
        import comfy_aimdo.model_vbar

        comfy.model_management.reset_cast_buffers()
        comfy.model_prefetch.cleanup_prefetch_queues()
        comfy_aimdo.model_vbar.vbars_reset_watermark_limits()


def sample(job: Result, tiny: bool) -> Result:
    """Two samplings: the first loads and warms up, the second is timed."""
    import comfy.model_management as management
    import torch
    from comfy.patcher_extension import WrappersMP

    run = Run(job, tiny)
    if not job["prefetch"]:
        run.patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, without_prefetch)
    _, warm_up = run.sample(2)
    picture, seconds = run.sample(N_STEPS)
    if not torch.isfinite(picture).all():
        raise ValueError("the picture is not finite")
    torch.save(picture.cpu(), job["picture"])
    there, size, step = run.patcher.loaded_size(), run.patcher.model_size(), statistics.median(seconds[1:])
    pinned, reserved = management.TOTAL_PINNED_MEMORY, torch.cuda.max_memory_reserved()
    note = (
        f"{1e3 * step:.0f} ms a step ({1e3 * min(seconds[1:]):.0f} to {1e3 * max(seconds[1:]):.0f}), "
        f"{warm_up[0]:.1f} s the first; {min(there, size) / GB:.1f} of {size / GB:.1f} GB of weights on the card, "
        f"{pinned / GB:.1f} GB of host memory pinned, {reserved / GB:.1f} GB reserved by torch"
    )
    return {"step": step, "note": note}


def without_prefetch(forward: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    """A wrapper of the diffusion model, whose eighth argument is ComfyUI's transformer_options."""
    *others, options = arguments
    return forward(*others, options | {"prefetch_dynamic_vbars": False}, **more)


def cycle(job: Result, tiny: bool) -> Result:
    """Growth of host and card memory from the second of N_LOADS + 1 rounds of loading, sampling and unloading."""
    import comfy.model_management as management
    import torch
    from loading import memory

    host, card, begin = [], [], time.perf_counter()
    for _ in range(N_LOADS + 1):
        run = Run(job, tiny)
        run.sample(1)
        management.unload_all_models()
        del run
        gc.collect()
        management.soft_empty_cache()
        host.append(memory("RssAnon") + memory("RssShmem"))
        card.append(-torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else math.nan)
    note = (
        f"after {N_LOADS} rounds of loading a quarter of {SLOWED}'s blocks, a step with room for half and unloading, "
        f"the first left out, {(time.perf_counter() - begin) / len(host):.1f} s each; at the most in between "
        f"host {(max(host[1:]) - host[0]) / 1e6:.1f} MB, card {(max(card[1:]) - card[0]) / 1e6:.1f} MB"
    )
    return {"host": host[-1] - host[0], "card": card[-1] - card[0], "note": note}


if __name__ == "__main__":
    main()
