"""Where the time of a step goes at full size: kernels of the card by what they do, beside the least that each needs.

    COMFYUI_PATH=... python benchmarks/fast_profile.py [--tiny] [--minutes M] [--folder FOLDER] [--quality FILE]
        [--out FILE]

Compiled steps of 1024x1024 with one such reference and 512 text tokens, random weights: full ones in BF16 and in FP8,
and those with kept references in FP8. The least is the arithmetic over what the card's own libraries reach on large
problems (CEILINGS, measured on an H200). The longest kernels of each are printed.
"""

from __future__ import annotations

from typing import Any

import report
from fast_steps import IN_FP8, NEVER, FastBench, main
from random_files import DEVICE
from torch.profiler import ProfilerActivity, profile

N_STEPS = 4  # under the profiler, after one that is not
CEILINGS = {  # FLOP a second
    "products, BF16": 797e12,
    "products, FP8": 1418e12,
    "attention, BF16": 634e12,
    "attention, FP8": 902e12,
}
KINDS = {  # of kernels, by what their names hold; the first that fits
    "attention": ("fmha", "flash", "attention", "sdpa", "cudnn"),
    "products": ("gemm", "cutlass", "nvjet", "xmma", "_mm", "gemv"),
    "fused": ("triton",),
}
N_SHOWN = 30
FLOPS_A_TOKEN, FLOPS_A_PAIR = 12.9e9, 0.70e6  # of FLUX.1: Linears; attention, a query and a key


class ProfileBench(FastBench):
    """A profile for each kind of step."""

    def everything(self) -> None:
        """One after the other."""
        from kontextkit.engine.cache.references import ReferenceSettings

        if not self.stages.run("weights, on the card", self.load):
            return
        kept = ReferenceSettings(interval=NEVER)
        n_target = self.noise.shape[2] * self.noise.shape[3] // 4
        n_all = 512 + 2 * n_target
        for name, choices, n_queries, dtype in (
            ("fp8_full", self.choices("quality", **IN_FP8), n_all, "FP8"),
            ("fp8_reuse", self.choices("quality", references=kept, **IN_FP8), n_all - n_target, "FP8"),
            ("bf16_full", self.choices("quality"), n_all, "BF16"),
        ):
            least = {
                "products": 1e3 * FLOPS_A_TOKEN * n_queries / CEILINGS[f"products, {dtype}"],
                "attention": 1e3 * FLOPS_A_PAIR * n_queries * n_all / CEILINGS[f"attention, {dtype}"],
            }
            self.stages.run(name, lambda name=name, choices=choices, least=least: self.step(name, choices, least))

    def step(self, name: str, choices: Any, least: dict[str, float]) -> None:
        """Rows of a kind of step."""
        way, activity = self.way(choices), getattr(ProfilerActivity, "CUDA" if DEVICE == "cuda" else "CPU")
        way(1 + N_STEPS, lambda: None)
        watching, done = profile(activities=[activity]), []

        def after_step() -> None:
            done.append(None)
            if len(done) in (1, 1 + N_STEPS):
                report.synchronize()
                (watching.start if len(done) == 1 else watching.stop)()

        way(1 + N_STEPS, after_step)
        ms: dict[str, float] = {}
        events = sorted(watching.key_averages(), key=lambda each: -took(each))
        for event in events:
            kind = next((kind for kind, words in KINDS.items() if any(w in event.key.lower() for w in words)), "other")
            ms[kind] = ms.get(kind, 0.0) + took(event)
        for event in events[:N_SHOWN]:
            print(f"{took(event):9.3f} ms {event.count / N_STEPS:7.1f} times a step  {event.key[:150]}", flush=True)
        for kind, each in ms.items():
            note = f"a step, under the profiler; at least {least[kind]:.0f}" if kind in least else "a step"
            self.stages.add(report.row(f"profile.{name}.{kind}_ms", each, "ms", note))
        note = f"of the kernels, one after the other; {sum(least.values()):.0f} for products and attention at least"
        self.stages.add(report.row(f"profile.{name}.total_ms", sum(ms.values()), "ms", note))


def took(event: Any) -> float:
    """Milliseconds of a kernel in a step."""
    return (event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total) / 1e3 / N_STEPS


if __name__ == "__main__":
    main(ProfileBench, __doc__, "fast_profile", minutes=4.0)
