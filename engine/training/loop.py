"""The optimizer loop: Muon and AdamW, warm-up and decay, a moving average, checkpoints to resume from."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from ..errors import CheckpointError
from ..whole_file import whole_file
from .muon import Muon

Loss = Callable[[int], Tensor]  # step -> loss
Tensors = tuple[Tensor, ...] | list[Tensor]


class Loop:
    """Trains a module's parameters on a loss.

    Several processes (torch.distributed) average their gradients; their losses must draw different data.
    """

    def __init__(
        self,
        model: nn.Module,
        n_steps: int,
        learning_rate: float,
        warmup: int = 200,
        decay_from: float = 0.0,
        ema_decay: float = 0.999,
        matrices: Collection[str] = (),
    ):
        """decay_from: share of the steps after which the rate falls linearly to 0. matrices: names of parameters
        that Muon takes; AdamW takes the others."""
        self.model, self.n_steps, self.step = model, n_steps, 0
        self.ema_decay = ema_decay
        self.ema = AveragedModel(model, multi_avg_fn=self._average)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        others = [p for name, p in model.named_parameters() if p.requires_grad and name not in matrices]
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, learning_rate, betas=(0.9, 0.99))]
        if matrices:
            self.optimizers.append(Muon(map(model.get_parameter, matrices), learning_rate))

        def rate(step: int) -> float:
            left = (n_steps - step) / max(1, n_steps * (1 - decay_from))
            return min(1.0, (step + 1) / warmup, max(0.0, left))

        self.schedules = [LambdaLR(optimizer, rate) for optimizer in self.optimizers]

    def run(
        self,
        loss: Loss,
        checkpoint: Path | None = None,
        report: Callable[[str], None] = print,
        report_every: int = 100,
    ) -> None:
        """Steps up to the end; at every report the state goes to `checkpoint`.

        Raises FloatingPointError where the loss is no number any more; the last checkpoint stays.
        """
        begin, first = time.perf_counter(), self.step
        losses: list[Tensor] = []
        while self.step < self.n_steps:
            losses.append(self._advance(loss))
            if self.step % report_every == 0 or self.step == self.n_steps:
                mean = torch.stack(losses).mean().item()
                losses.clear()
                if not mean < float("inf"):
                    raise FloatingPointError(f"the loss is {mean} at step {self.step}; lower the learning rate")
                pace = (self.step - first) / (time.perf_counter() - begin)
                if checkpoint is not None:
                    self.save(checkpoint)
                report(f"step {self.step} of {self.n_steps}, loss {mean:.5f}, {pace:.1f} steps a second")

    def _advance(self, loss: Loss) -> Tensor:
        value = loss(self.step)
        value.backward()
        average_gradients(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        self.ema.update_parameters(self.model)
        self.step += 1
        return value.detach()

    def _average(self, averages: Tensors, values: Tensors, _: Tensor | int) -> None:
        """Over a tenth of the steps so far at most: of a short run, too, the start is forgotten."""
        decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(averages, values, 1 - decay)

    @property
    def _parts(self) -> dict[str, Any]:
        steppers = [*self.optimizers, *self.schedules]
        return {"model": self.model, "ema": self.ema} | {f"stepper {i}": part for i, part in enumerate(steppers)}

    def save(self, path: Path) -> None:
        """Everything `resume` needs, written beside and moved into place."""
        state = {name: part.state_dict() for name, part in self._parts.items()} | {"step": self.step}
        if not dist.is_initialized() or dist.get_rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(path) as unfinished:
                torch.save(state, unfinished)

    def resume(self, path: Path) -> bool:
        """Goes on from a checkpoint, if there is one. Raises CheckpointError where it is of another model or torn."""
        if not path.exists():
            return False
        try:
            state: dict[str, Any] = torch.load(path, map_location=self.parameters[0].device, weights_only=True)
            for name, part in self._parts.items():
                part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError, UnpicklingError, EOFError) as error:
            raise CheckpointError(
                f"{path.name}: this checkpoint is of another model or way of training, or torn ({error}). "
                "Move it away to start anew, or train with the settings it was made with."
            ) from error
        self.step = state["step"]
        return True


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over all processes, in place; nothing to do for one."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(mean.view_as(grad))
