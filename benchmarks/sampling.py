"""Sampling through ComfyUI as its KSampler node does it, and what the optimizer did meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SAMPLER, SCHEDULER = "euler", "simple"


def sample(
    model: Any, noise: Tensor, n_steps: int, conditioning: list[Any], after_step: Callable[..., None] | None = None
) -> Tensor:
    """A picture (latent) from this noise, without a second guidance."""
    import comfy.sample

    how = (n_steps, 1.0, SAMPLER, SCHEDULER, conditioning, conditioning, torch.zeros_like(noise))
    return comfy.sample.sample(model, noise, *how, callback=after_step, disable_pbar=True, seed=0)


def emulate_narrow() -> None:
    """Products in fewer bits from now on by plain arithmetic where this machine has none."""
    from kontextkit.engine.quant import block_scaled, fp8
    from kontextkit.engine.quant.block_scaled import MXFP8, BlockFormat

    if not torch.cuda.is_available():
        fp8.why_not = lambda device: ""
    if MXFP8.why_not(torch.device("cuda" if torch.cuda.is_available() else "cpu")):
        block_scaled._why_not = lambda format, device: ""
        BlockFormat.product = lambda self, x, w, dtype: (self.dequantize(x) @ self.dequantize(w).t()).to(dtype)


class Optimized:
    """A MODEL as `KontextOptimize` returns it, and the last run of it."""

    def __init__(self, patcher: Any, choices: Any):
        from comfy.patcher_extension import WrappersMP
        from kontextkit.bridge import optimize

        self.model, self.report = optimize.apply(patcher, choices)
        self.last: Any = None
        self.model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, "benchmark", self._around_sampler)

    def _around_sampler(self, sample: Callable[..., Any], guider: Any, sigmas: Any, extra: Any, *rest: Any) -> Any:
        from kontextkit.bridge.run import KEY

        self.last = extra["model_options"]["transformer_options"].get(KEY)
        return sample(guider, sigmas, extra, *rest)

    def sample(
        self, noise: Tensor, n_steps: int, conditioning: list[Any], after_step: Callable[..., None] | None = None
    ) -> tuple[Tensor, list[str]]:
        """The picture, and the kind of each step, of `bridge.run.KINDS`. Raises RuntimeError where nothing compiled."""
        latents = sample(self.model, noise, n_steps, conditioning, after_step)
        if self.last is None:
            return latents, ["computed"] * n_steps
        if self.last.failed.reason:
            raise RuntimeError(f"not compiled: {self.last.failed.reason}")
        assert len(self.last.passes) == n_steps
        return latents, [kind for kind, _ in self.last.passes]
