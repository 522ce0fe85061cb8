"""What optimize_steps.py measures beside whole runs: attention, fused projections, the VAE, bookkeeping, ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any
from uuid import uuid4

import report
import torch
import torch.nn.functional as F
from gguf_steps import medians
from random_files import COMPUTE, DEVICE
from stages import Stages

BOOKKEEPING_GOAL = 0.2  # ms a step
TIMES = 10  # calls between two looks at the clock


@dataclass(frozen=True)
class Sizes:
    """tokens and heads of a step; side of a square product; n_bytes of a copy; the decoder: latent side and widths."""

    tokens: int = 8704
    heads: int = 24
    side: int = 8192
    n_bytes: int = 2 << 30
    latent: int = 128
    width: int = 128
    widths: tuple[int, ...] = (1, 2, 4, 4)
    n_blocks: int = 2


TINY = Sizes(256, 2, 256, 1 << 20, 8, 32, (1,), 0)


def probe(stages: Stages, tiny: bool, n_steps: int) -> None:
    """Everything but the VAE, in a few seconds."""
    size = TINY if tiny else Sizes()
    stages.run("ceilings", lambda: ceilings(stages, size), ("ceiling.matmul_tflops",), "TFLOP/s")
    stages.run("attention", lambda: attention(stages, size), ("attention.ms",))
    stages.run("fused projections", lambda: fused_qkv(stages, size), ("qkv.fused_ms",))
    stages.run("bookkeeping", lambda: bookkeeping(stages, n_steps), ("optimize.bookkeeping_ms",))


def several(work: Callable[[], Any]) -> Callable[[], None]:
    """TIMES calls, so that looking at the clock costs nothing."""

    def run() -> None:
        for _ in range(TIMES):
            work()

    return run


def random(*shape: int) -> torch.Tensor:
    """In the type that is computed in."""
    return torch.randn(*shape, device=DEVICE, dtype=COMPUTE)


def ceilings(stages: Stages, size: Sizes) -> None:
    """The card's own pace at a large product and a large copy."""
    n = size.side
    a, b = random(n, n), random(n, n)
    source = torch.randint(256, (size.n_bytes,), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    ms = medians({"matmul": several(lambda: a @ b), "copy": several(lambda: target.copy_(source))})
    tflops, terabytes = 2 * n**3 / (ms["matmul"] / TIMES) / 1e9, 2 * source.numel() / (ms["copy"] / TIMES) / 1e9
    note = f"{n}x{n}x{n}, {str(COMPUTE).removeprefix('torch.')}"
    stages.add(report.row("ceiling.matmul_tflops", tflops, "TFLOP/s", note, better="higher"))
    stages.add(report.row("ceiling.copy_tb_s", terabytes, "TB/s", "bytes read and written", better="higher"))


def attention(stages: Stages, size: Sizes) -> None:
    """Every backend at the length of a step, and torch's own choice."""
    from kontextkit.engine.attention.backends import BACKENDS, fastest, why_not

    q, k, v = (random(1, size.heads, size.tokens, 128) for _ in range(3))
    right = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    works = {"torch": lambda: F.scaled_dot_product_attention(q, k, v)}
    for name, attend in BACKENDS.items():
        reason = why_not(name, q.device)
        if not reason:
            works[name] = lambda attend=attend: attend(q, k, v)
    note = f"{size.heads} heads x {size.tokens} x 128"
    for name in ("torch", *BACKENDS):
        row_name, work = f"attention.{name}.ms", works.get(name)
        try:
            if work is None:
                raise RuntimeError(why_not(name, q.device))
            error = ((work().float() - right).norm() / right.norm()).item()
            ms = medians({name: several(work)})[name] / TIMES
        except RuntimeError as failure:
            stages.add(report.failed(row_name, "ms", str(failure).splitlines()[0][:200]))
            continue
        stages.add(report.row(row_name, ms, "ms", f"{note}; relative error {error:.2g} to float32"))
    if DEVICE == "cuda":
        print(f"           the optimizer takes {fastest(q, k, v)}", flush=True)


def fused_qkv(stages: Stages, size: Sizes) -> None:
    """Three projections one after the other against one of three times the width."""
    width = size.heads * 128
    x, weight, bias = random(1, size.tokens, width), random(3 * width, width), random(3 * width)
    weights, biases = weight.chunk(3), bias.chunk(3)

    def three() -> Any:
        return [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]

    ms = medians({"three": several(three), "fused": several(lambda: F.linear(x, weight, bias).chunk(3, dim=-1))})
    note = f"q, k and v of {size.tokens} tokens, {width} wide"
    for name, each in ms.items():
        stages.add(report.row(f"qkv.{name}_ms", each / TIMES, "ms", note))


def bookkeeping(stages: Stages, n_steps: int) -> None:
    """The cache's own work on the host: everything it does in a pass, on tensors so small that only the calls count.

    With a threshold that means the measure of change too, whose arithmetic on a card only costs the host its calls.
    """
    from kontextkit.engine.cache.first_block import FirstBlockSettings

    fixed = FirstBlockSettings(computed=range(0, n_steps, 2))
    words = (
        "threshold and extrapolation on 1x4x8 numbers on the CPU, the passes' timers among it, no waiting for a card"
    )
    for name, settings, note, goal in (
        ("optimize.bookkeeping_ms", FirstBlockSettings(), words, BOOKKEEPING_GOAL),
        ("optimize.bookkeeping_ms.fixed_map", fixed, "the same with a fixed map of steps, every second computed", None),
    ):
        ms = median(bookkeeping_ms(settings, n_steps) for _ in range(50))
        stages.add(report.row(name, ms, "ms", f"a step; {note}", goal))


def bookkeeping_ms(settings: Any, n_steps: int) -> float:
    """Of a step, in one run."""
    from kontextkit.bridge.run import SamplingRun
    from kontextkit.engine.tiers.presets import Choices

    sigmas = [1 - step / n_steps for step in range(n_steps + 1)]
    run = SamplingRun(Choices(settings), sigmas, torch.device(DEVICE))
    options, first = {"uuids": [uuid4()], "cond_or_uncond": [0]}, torch.ones(1, 4, 8)
    shapes, next_step = ((1, 16, 128, 128), (1, 512, 4096), (1, 4096, 64)), run.after_step(None)
    begin = time.perf_counter()
    for step in range(n_steps):
        caches = run.cached(options, shapes)
        cache = caches.blocks
        assert cache
        with run.timed(caches):
            if cache.predict(first) is None:
                cache.keep(first)
        next_step(step)
    return 1e3 * (time.perf_counter() - begin) / n_steps


class Decode:
    """ComfyUI's decoder of FLUX's VAE, of random weights, and a latent."""

    def __init__(self, tiny: bool):
        from comfy.ldm.modules.diffusionmodules.model import Decoder

        size = TINY if tiny else Sizes()
        self.side = size.latent
        shape = {
            "ch": size.width,
            "ch_mult": size.widths,
            "num_res_blocks": size.n_blocks,
            "z_channels": 16,
            "out_ch": 3,
        }
        with torch.device(DEVICE):
            self.decoder = Decoder(**shape, attn_resolutions=[], in_channels=3, resolution=256)
        for parameter in self.decoder.parameters():  # ComfyUI's layers leave them as memory was
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.fill_(1)
        self.decoder.to(COMPUTE).eval()
        self.latent = random(1, 16, self.side, self.side)

    def everything(self, stages: Stages) -> None:
        """Plain, channels-last, then both compiled."""
        last = {"memory_format": torch.channels_last}
        for name in ("plain", "compiled", "channels_last", "channels_last_compiled"):
            if name.startswith("channels_last"):
                self.decoder, self.latent = self.decoder.to(**last), self.latent.to(**last)
            row = f"vae.decode_ms.{name}"
            stages.run(f"VAE, {name}", lambda name=name, row=row: self.measure(stages, name, row), (row,))

    def measure(self, stages: Stages, name: str, row: str) -> None:
        """One way."""
        decode = torch.compile(self.decoder) if name.endswith("compiled") else self.decoder
        begin = time.perf_counter()
        if not torch.isfinite(decode(self.latent)).all():
            raise ValueError("the picture is not finite")
        first = time.perf_counter() - begin
        ms = medians({name: lambda: decode(self.latent)})[name]
        note = f"{8 * self.side}x{8 * self.side}, {str(COMPUTE).removeprefix('torch.')}; the first took {first:.1f} s"
        stages.add(report.row(row, ms, "ms", note))
