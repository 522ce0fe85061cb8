"""Step distillation: a LoRA with which a few steps end where many of the model's own do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .flow_matching import Conditions, velocity
from .lora import Example, LoraTraining, Settings, without_lora


class Distillation(LoraTraining):
    """Every step of the LoRA's learns to go as far as several without it (https://arxiv.org/abs/2202.00512).

    It starts on an edit's result and noise mixed; what the model makes of that is learnt, not the result.
    """

    def __init__(
        self,
        transformer: nn.Module,
        examples: Sequence[Example],
        settings: Settings,
        made_with: dict[str, Any],
        sigmas: Tensor,
    ):
        """sigmas: (settings.distil * n + 1,), falling from 1 to 0: the model's own steps, n for one of the LoRA's."""
        super().__init__(transformer, examples, settings, made_with)
        n_own, rest = divmod(len(sigmas) - 1, settings.distil)
        if rest or not n_own:
            raise ValueError(f"{len(sigmas) - 1} steps of the model cannot be shared out to {settings.distil}")
        self.sigmas, self.n_own = sigmas.float().to(self.device), n_own
        self.levels, self.n_measured = sigmas.float()[:-1:n_own], 2

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        return self.levels[torch.randint(len(self.levels), (n,), generator=generator)]

    def _error(self, clean: Tensor, noise: Tensor, sigma: Tensor, given: Conditions) -> Tensor:
        """Mean squared error of where a step ends, in units of a step of mean length."""
        first = (self.sigmas - sigma[:, None]).abs().argmin(dim=1)
        x = start = torch.lerp(clean, noise, _spread(sigma))
        with torch.no_grad(), without_lora(self.transformer):
            for i in range(self.n_own):
                here, there = self.sigmas[first + i], self.sigmas[first + i + 1]
                x = x + _spread(there - here) * velocity(self.transformer, x, here, given, self.hooks).float()
        length = _spread(self.sigmas[first + self.n_own] - sigma)
        end = start + length * velocity(self.transformer, start, sigma, given, self.hooks).float()
        return (self.settings.distil * (end - x)).square().mean()


def _spread(sigma: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1)."""
    return sigma[:, None, None, None]
