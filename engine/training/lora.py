"""LoRA on a frozen transformer, learnt from edits by flow matching (https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint as recompute

from ..errors import listing
from ..flux.hooks import BlockHooks, BlockPlace, Run, Stream
from ..quant import QuantLinear
from .flow_matching import Conditions, draw_sigmas, flow_matching_errors
from .loop import Loop

BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")
SHIFT = 1.8  # of noise levels towards noise, where an edit is decided
LARGE = 10**9  # bytes of weights from which blocks are computed again in the backward pass, to save memory
# cuDNN's is not among them: its backward pass crashed in torch 2.11
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
MOST_DISTILLED = 16  # steps: the model's own are 20 to 30
LEVELS = (0.3, 0.6, 0.9)  # noise levels at which a LoRA is compared with its base


@dataclass(frozen=True)
class Settings:
    """How a LoRA is trained.

    rate: AdamW's, reached after a twentieth of the steps, falling to 0 in the last third. distil: how many of the
    sampler's steps shall do, 0 to learn the edits themselves. guidance: which the model reads; at 1 the velocity of a
    model with guidance in it is the data's own.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    rate: float = 1e-4
    steps: int = 1000
    batch: int = 1
    seed: int = 0
    distil: int = 0
    guidance: float = 1.0

    def __post_init__(self) -> None:
        """Raises ValueError for a number out of range."""
        least = {"rank": 1, "steps": 1, "batch": 1, "seed": 0, "distil": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {bound} or more")
        if self.distil > MOST_DISTILLED:
            raise ValueError(f"distil is {self.distil}, expected 0 to {MOST_DISTILLED}: more steps need no LoRA")
        for name in ("alpha", "rate", "guidance"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, expected 0 to 1, without 1")


@dataclass(frozen=True)
class Example:
    """An edit, encoded.

    latents: (1 + references, 16, h, w), the result first; context: (L, D); pooled: (D,); all float32.
    """

    latents: Tensor
    context: Tensor
    pooled: Tensor


class Recomputed(BlockHooks):
    """Keeps only what lies between blocks; a block is computed once more where its gradients are needed."""

    def around(self, place: BlockPlace, run: Run, stream: Stream) -> tuple[Tensor, Tensor]:
        """See `BlockHooks.around`."""

        def block(img: Tensor, txt: Tensor) -> tuple[Tensor, Tensor]:
            return run(Stream(img, txt, stream.vec, stream.pe, stream.mask))

        img, txt = recompute(block, stream.img, stream.txt, use_reentrant=False)
        return img, txt


class Adapters(nn.ParameterList):
    """The trained parameters, and in a checkpoint with them what they were made with and the losses so far."""

    def __init__(self, parameters: Sequence[nn.Parameter], made_with: dict[str, Any]):
        super().__init__(parameters)
        self.made_with = made_with
        self.losses: list[float] = []

    def get_extra_state(self) -> dict[str, Any]:
        """For state_dict."""
        return {"made with": self.made_with, "losses": self.losses}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """For load_state_dict. Raises ValueError where the checkpoint was made with something else."""
        before = state["made with"]
        both = before.keys() | self.made_with.keys()
        other = sorted(key for key in both if before.get(key) != self.made_with.get(key))
        if other:
            said = listing(f"{key} was {before.get(key)}, is {self.made_with.get(key)}" for key in other)
            raise ValueError(said)
        self.losses = list(state["losses"])


def attach(transformer: nn.Module, settings: Settings) -> list[nn.Parameter]:
    """Puts a peft LoRA beside every Linear of the blocks, packed or not, in place; the parameters to train."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear

    linears = [
        name
        for name, module in transformer.named_modules()
        if name.startswith(BLOCKS) and isinstance(module, (nn.Linear, QuantLinear))
    ]
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=linears
    )
    config._register_custom_module({QuantLinear: Linear})  # peft asks a base for its two sizes and its product alone
    with seeded(settings.seed, next(transformer.parameters()).device), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")
        inject_adapter_in_model(config, transformer)
    return [p for p in transformer.parameters() if p.requires_grad]


def lora_layers(transformer: nn.Module) -> dict[str, tuple[Tensor, Tensor, float]]:
    """{Linear: (down (r, in), up (out, r), alpha / r)} of what `attach` put there."""
    return {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight, module.scaling["default"])
        for name, module in transformer.named_modules()
        if hasattr(module, "lora_A")
    }


@contextmanager
def without_lora(transformer: nn.Module) -> Iterator[None]:
    """The model as it was before `attach`."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in transformer.modules() if isinstance(module, LoraLayer)]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's own random numbers (dropout, first values) from a seed; afterwards as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class LoraTraining:
    """A LoRA in the making on a transformer that `attach` has not seen yet, whose own weights stay as they are."""

    def __init__(
        self, transformer: nn.Module, examples: Sequence[Example], settings: Settings, made_with: dict[str, Any]
    ):
        """made_with: what else a checkpoint must agree on, to be gone on with (numbers and strings)."""
        self.transformer, self.examples, self.settings = transformer, examples, settings
        self.device = next(transformer.parameters()).device
        self.adapters = Adapters(attach(transformer, settings), asdict(settings) | made_with)
        is_large = sum(p.nbytes for p in transformer.parameters()) > LARGE
        self.hooks: BlockHooks = Recomputed() if is_large else BlockHooks()
        self.loop = Loop(
            self.adapters,
            settings.steps,
            settings.rate,
            warmup=max(1, settings.steps // 20),
            decay_from=2 / 3,
            ema_decay=0.0,  # the last weights: the falling rate averages already
        )
        self.levels, self.n_measured = torch.tensor(LEVELS), 16  # where, and on how many edits, the loss is compared
        self.groups: dict[tuple[torch.Size, torch.Size], list[Example]] = defaultdict(list)
        for example in examples:
            self.groups[example.latents.shape, example.context.shape].append(example)

    @property
    def losses(self) -> list[float]:
        """Of every step so far."""
        return self.adapters.losses

    def run(
        self, checkpoint: Path, report: Callable[[str], None], progress: Callable[[int], None] = lambda step: None
    ) -> None:
        """Trains to the end, from the checkpoint where there is one.

        progress: called before every step with the number of those done; where it raises, the checkpoint is written
        first. Raises CheckpointError for one of another training, FloatingPointError where the loss is no number any
        more.
        """

        def loss(step: int) -> Tensor:
            try:
                progress(step)
            except BaseException:
                if step:
                    self.loop.save(checkpoint)
                raise
            return self._loss(step)

        if self.loop.resume(checkpoint):
            report(f"going on from step {self.loop.step}")
        self.transformer.train()
        try:
            with sdpa_kernel(KERNELS):
                self.loop.run(loss, checkpoint, report, report_every=max(1, self.settings.steps // 20))
        finally:
            self.transformer.eval()

    @torch.no_grad()
    def measure(self, progress: Callable[[], None] = lambda: None) -> float:
        """The mean loss on some of the edits at noise that is always the same: to compare before and after.

        progress: called before every edit.
        """
        self.transformer.eval()
        generator = torch.Generator().manual_seed(self.settings.seed)
        losses = []
        for example in self.examples[: self.n_measured]:
            progress()
            noise = torch.randn(example.latents[:1].shape, generator=generator)
            losses += [self._flow([example], noise, sigma).item() for sigma in self.levels.split(1)]
        return sum(losses) / len(losses)

    def _loss(self, step: int) -> Tensor:
        """Edits of one size, drawn by the step's own generator, so that a resumed run draws the same."""
        seed = 1_000_003 * self.settings.seed + step
        generator = torch.Generator().manual_seed(seed)
        groups = list(self.groups.values())
        shares = torch.tensor([float(len(group)) for group in groups])
        group = groups[int(torch.multinomial(shares, 1, generator=generator))]
        chosen = torch.randint(len(group), (self.settings.batch,), generator=generator)
        batch = [group[i] for i in chosen]
        noise = torch.randn(len(batch), *batch[0].latents.shape[1:], generator=generator)
        sigma = self._draw(len(batch), generator)
        with seeded(seed, self.device):
            loss = self._flow(batch, noise, sigma)
        self.losses.append(loss.item())
        return loss

    def _flow(self, batch: Sequence[Example], noise: Tensor, sigma: Tensor) -> Tensor:
        """On a card in bfloat16, elsewhere in float32."""
        latents, context, pooled, noise, sigma = (
            tensor.to(self.device)
            for tensor in (
                torch.stack([example.latents for example in batch]),
                torch.stack([example.context for example in batch]),
                torch.stack([example.pooled for example in batch]),
                noise,
                sigma,
            )
        )
        guidance = torch.full_like(sigma, self.settings.guidance)
        given = Conditions(context, pooled, guidance, list(latents[:, 1:].unbind(1)))
        with torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext():
            return self._error(latents[:, 0], noise, sigma, given)

    def _draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n noise levels."""
        return draw_sigmas(n, generator, SHIFT)

    def _error(self, clean: Tensor, noise: Tensor, sigma: Tensor, given: Conditions) -> Tensor:
        """The loss of a batch (B, C, H, W), sigma (B,)."""
        return flow_matching_errors(self.transformer, clean, noise, sigma, given, self.hooks).mean()
