"""FLUX's text encoders from two files as ComfyUI's CLIP, its Linears over weights as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.ops
import comfy.sd
import comfy.text_encoders.flux
import folder_paths
import torch
from comfy.supported_models_base import ClipTarget
from torch import nn

from ..engine.checkpoint import open_checkpoint
from ..engine.errors import CheckpointError, listing
from ..engine.quant import PackedTensor
from ..engine.text_encoders import read_clip_l, read_t5xxl
from .kept_clip import KeptCLIP
from .linear import HostedLinear
from .model import read_through

Tensors = Mapping[str, PackedTensor]
PROJECTION = "text_projection.weight"  # of CLIP-L; FLUX does not use it, and many files lack it


class Place(nn.Module):
    """Where a Linear will stand, once its weights are known."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, **_: Any):
        super().__init__()
        self.shapes = {"weight": (out_features, in_features)} | ({"bias": (out_features,)} if bias else {})


class Operations(comfy.ops.manual_cast):
    """ComfyUI's layers, which are cast for each product, but for Linear."""

    Linear = Place


def load_text_encoders(clip_l: str | Path, t5xxl: str | Path, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """A CLIP of type flux. disable_dynamic: see `model.load`.

    Raises CheckpointError where a file is broken, of another encoder, or in the other's place.
    """
    files = open_checkpoint(clip_l), open_checkpoint(t5xxl)
    tensors = read_clip_l(files[0]), read_t5xxl(files[1])
    for file in files:
        read_through(file)
    clip = make_clip(*tensors, (files[0].file_name, files[1].file_name), disable_dynamic=disable_dynamic)
    clip.patcher.cached_patcher_init = (_patcher, (clip_l, t5xxl))
    return clip


def _patcher(clip_l: str | Path, t5xxl: str | Path, disable_dynamic: bool = False) -> Any:
    return load_text_encoders(clip_l, t5xxl, disable_dynamic).patcher


def make_clip(
    clip_l: Tensors,
    t5xxl: Tensors,
    file_names: tuple[str, str],
    configs: Mapping[str, Any] | None = None,
    disable_dynamic: bool = False,
) -> comfy.sd.CLIP:
    """The CLIP of tensors under Hugging Face's names. configs: ComfyUI's model options, for encoders of other sizes."""

    def make(device: Any, dtype: torch.dtype, model_options: dict[str, Any]) -> nn.Module:
        model = comfy.text_encoders.flux.FluxClipModel(None, device, dtype, model_options)
        shape = model.clip_l.transformer.text_projection.shapes["weight"]
        projection = PackedTensor(torch.eye(*shape), "F32", shape)
        fill(model.clip_l.transformer, {PROJECTION: projection} | dict(clip_l), file_names[0])
        fill(model.t5xxl.transformer, t5xxl, file_names[1])
        return model.requires_grad_(False)

    return KeptCLIP(
        ClipTarget(comfy.text_encoders.flux.FluxTokenizer, make),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(tensor.data.nbytes for tensor in (*clip_l.values(), *t5xxl.values())) // 2,  # of two bytes
        model_options={
            "custom_operations": Operations,
            "initial_device": torch.device("cpu"),  # where the files are mapped; ComfyUI moves them when a prompt comes
            **(configs or {}),
        },
        disable_dynamic=disable_dynamic,
    )


def fill(encoder: nn.Module, tensors: Tensors, file_name: str) -> None:
    """Every weight of an encoder of ComfyUI's, from `tensors`; those it does not know are left aside.

    Raises CheckpointError where one is missing or of another shape.
    """
    places = {name: module for name, module in encoder.named_modules() if isinstance(module, Place)}
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    for name, place in places.items():
        expected |= {f"{name}.{part}": shape for part, shape in place.shapes.items()}
    if missing := [name for name in expected if name not in tensors]:
        raise CheckpointError(
            f"{file_name}: {len(missing)} of {len(expected)} tensors of this text encoder are missing: "
            f"{listing(missing)}. The file is incomplete; download it again."
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{file_name}: tensor {name!r} has shape {list(tensors[name].shape)}, expected {list(shape)}. "
                "The file is damaged or of another encoder; download it again."
            )
    for name in places:
        encoder.set_submodule(name, HostedLinear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")))
    for name, _ in list(encoder.named_parameters()):
        owner, _, part = name.rpartition(".")
        if not isinstance(encoder.get_submodule(owner), HostedLinear):
            tensor = tensors[name]
            values = tensor.data if tensor.is_dense else tensor.decode(torch.float16)  # the words; 263 MB of T5-XXL's
            setattr(encoder.get_submodule(owner), part, nn.Parameter(values, requires_grad=False))
