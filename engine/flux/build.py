"""diffusers' FLUX transformer over packed weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..errors import CheckpointError
from ..quant import PackedTensor, QuantLinear
from .config import FluxConfig
from .weights import Weights

LinearFactory = Callable[[PackedTensor, PackedTensor | None], nn.Module]


def build_transformer(
    config: FluxConfig, weights: Weights, file_name: str, make_linear: LinearFactory = QuantLinear
) -> nn.Module:
    """A `FluxTransformer2DModel` whose Linears hold `weights` as they lie in their file.

    make_linear: (weight, bias) -> module, for a host that moves weights itself.
    Raises CheckpointError where a tensor has another shape than its place in the model.
    """
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(**config.as_kwargs())
    for name, parameter in model.named_parameters():
        if weights[name].shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{file_name}: the tensor that becomes {name!r} has shape {list(weights[name].shape)}, "
                f"expected {list(parameter.shape)}. The file is damaged or not a plain FLUX.1 model."
            )
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, make_linear(weights[f"{name}.weight"], weights.get(f"{name}.bias")))
        elif isinstance(module, nn.RMSNorm):
            module.weight = nn.Parameter(weights[f"{name}.weight"].as_floats(), requires_grad=False)
    return model.requires_grad_(False).eval()
