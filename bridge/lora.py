"""LoRAs on a MODEL: data on its ModelPatcher, on the Linears only while a sampler runs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.ops
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..engine.errors import LoraError
from ..engine.lora.branch import attached
from ..engine.lora.factors import Factors
from ..engine.lora.profiles import Profile
from ..engine.lora.read import Lora, read_lora
from ..engine.lora.stack import LoraStack
from ..engine.quant import QuantLinear
from .model import KontextModel
from .notes import show_here
from .patcher import is_dynamic, patcher_class

KEY = "kontextkit.lora"
Devices = tuple[torch.device, torch.device]  # to load to, to offload to: the MODEL's own
STRONGEST = 10.0
WHOLE = 0.9  # of the keys: where fewer match, the node warns
N_FILES = 4  # read files to remember: their tensors stay mapped, which costs next to nothing
N_STACKS = 2  # stacks to remember, so that another strength or the last LoRA again moves no weights


@dataclass(frozen=True)
class Applied:
    """A LoRA on a MODEL."""

    lora: Lora
    strength: float


class HostedFactors(Factors, comfy.ops.CastWeightBiasOp):
    """A pair of factors that ComfyUI may leave on the host and bring over for each product."""

    def forward(self, x: Tensor, scales: Tensor, start: Tensor | None) -> Tensor:
        """See `Factors.forward`."""
        if not self.comfy_cast_weights:
            return super().forward(x, scales, start)
        weight, bias, stream = comfy.ops.cast_bias_weight(
            self, dtype=x.dtype, device=x.device, bias_dtype=x.dtype, offloadable=True
        )
        y = self.product(x, scales, weight, bias, start)
        comfy.ops.uncast_bias_weight(self, weight, bias, stream)
        return y


def read(path: str | Path, patcher: Any) -> Lora:
    """The LoRA at `path` for this MODEL; a file that has not changed since is not read again.

    Raises LoraError for a file that is no LoRA of this model, or where the MODEL is not this pack's.
    """
    if not isinstance(patcher.model, KontextModel):
        raise LoraError(
            f"{Path(path).name}: the MODEL is from another loader; this node works on one from Load Kontext Model or "
            "Load Kontext Demo Model. Use ComfyUI's LoraLoaderModelOnly, or load the model with one of these."
        )
    stat = Path(path).stat()
    linears = patcher.model.diffusion_model.transformer.named_modules()
    shapes = tuple((name, m.out_features, m.in_features) for name, m in linears if isinstance(m, QuantLinear))
    return _read(str(path), stat.st_mtime_ns, stat.st_size, shapes)


@lru_cache(N_FILES)
def _read(path: str, mtime_ns: int, n_bytes: int, shapes: tuple[tuple[str, int, int], ...]) -> Lora:
    return read_lora(path, {name: (n_out, n_in) for name, n_out, n_in in shapes})


def apply(patcher: Any, lora: Lora, strength: float) -> Any:
    """A clone of the MODEL with the LoRA beside those it has; with strength 0, a clone.

    Raises LoraError for a strength beyond STRONGEST or one that is no number.
    """
    if not abs(strength) <= STRONGEST:  # NaN compares false
        raise LoraError(
            f"{lora.file_name}: its strength is {strength}, expected a number from {-STRONGEST:g} to {STRONGEST:g}. "
            "Most LoRAs are made for 1."
        )
    clone = patcher.clone()
    if strength == 0:
        return clone
    clone.set_attachments(KEY, (*applied(patcher), Applied(lora, strength)))
    for kind, wrapper in ((WrappersMP.PREPARE_SAMPLING, bring_along), (WrappersMP.SAMPLER_SAMPLE, around_sampler)):
        clone.remove_wrappers_with_key(kind, KEY)
        clone.add_wrapper_with_key(kind, KEY, wrapper)
    clone.remove_additional_models(KEY)
    return clone


def applied(patcher: Any) -> tuple[Applied, ...]:
    """The LoRAs on a MODEL, the first applied first."""
    return patcher.get_attachment(KEY) or ()


def tell(lora: Lora, strength: float, profile: Profile, why: str) -> str:
    """A report of some lines; what matters of it is shown under the running node, and warnings are logged too."""
    wants = f"{profile.steps} steps, guidance {profile.guidance:g}"
    lines = [f"{wants}: profile {profile.name}, because {why}."]
    if lora.matched_share < WHOLE:
        lines.insert(0, f"Warning: only {lora.matched_share:.0%} of the keys match this model, the rest has no effect.")
        logging.warning("KontextKit: %s: %s", lora.file_name, lines[0])
    if strength == 0:
        lines.append("Strength 0: the model is as it was.")
    elif strength != profile.strength and profile.name != "none":
        lines.append(f"Strength {strength:g}; {profile.name} was made for {profile.strength:g}.")
    what, matched, *skipped = lora.report().splitlines()
    show_here("\n".join([*lines, matched]))
    return "\n".join([*lines, what, matched, *skipped])


def bring_along(prepare: Callable[..., Any], patcher: Any, *rest: Any, **more: Any) -> Any:
    """Before ComfyUI loads the model: the factors, as a model of their own that it counts, loads and offloads with it.

    Only now, because of several nodes in a row the last one's factors alone are needed.
    """
    if not patcher.get_additional_models_with_key(KEY):
        loras, dtype = [each.lora for each in applied(patcher)], patcher.model.get_dtype_inference()
        devices = patcher.load_device, patcher.offload_device
        patcher.set_additional_models(KEY, [_stacks.patcher(loras, dtype, devices, not is_dynamic(patcher))])
    return prepare(patcher, *rest, **more)


def around_sampler(sample: Callable[..., Any], guider: Any, *rest: Any, **more: Any) -> Any:
    """The LoRAs are on the Linears while the sampler runs, whatever happens in it."""
    patcher = guider.model_patcher
    if len(guider.model_options.get("multigpu_clones", ())) > 1:
        raise ValueError("A LoRA of Load Kontext LoRA works on one GPU only. Remove the multi-GPU node.")
    (factors,) = patcher.get_additional_models_with_key(KEY)
    transformer = patcher.model.diffusion_model.transformer
    strengths = [each.strength for each in applied(patcher)]
    dtype = patcher.model.get_dtype_inference()
    with attached(transformer, factors.model.branches(transformer, strengths, patcher.load_device, dtype)):
        return sample(guider, *rest, **more)


class _Stacks:
    """The last few stacks as ModelPatchers: ComfyUI forgets what it loaded as soon as nobody holds the patcher."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[object, ...], tuple[list[Lora], Any]] = OrderedDict()

    def patcher(self, loras: list[Lora], dtype: torch.dtype, devices: Devices, disable_dynamic: bool) -> Any:
        """A ModelPatcher of the `LoraStack` of these LoRAs."""
        key = (dtype, *devices, disable_dynamic, *map(id, loras))  # ids stay unique while the LoRAs are kept beside
        if key not in self.kept:
            self.kept[key] = loras, _make_patcher(loras, dtype, devices, disable_dynamic)
        self.kept.move_to_end(key)
        while len(self.kept) > N_STACKS:
            self.kept.popitem(last=False)
        return self.kept[key][1]


_stacks = _Stacks()


def _make_patcher(loras: list[Lora], dtype: torch.dtype, devices: Devices, disable_dynamic: bool = False) -> Any:
    """disable_dynamic: see `patcher_class`."""
    stack = LoraStack([lora.adapters for lora in loras], dtype, HostedFactors)
    patcher = patcher_class(devices[0], disable_dynamic)(stack, *devices)
    patcher.cached_patcher_init = (_make_patcher, (loras, dtype, devices))
    return patcher
