"""A FLUX.1 Kontext file as ComfyUI's MODEL."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.supported_models
import comfy.utils
import torch

from ..engine.checkpoint import Checkpoint, check_scales, open_checkpoint
from ..engine.flux.build import build_transformer
from ..engine.flux.config import TOKEN_CHANNELS, FluxConfig
from ..engine.flux.positions import PATCH
from ..engine.flux.rope import THETA
from ..engine.flux.weights import Weights, read_weights
from .linear import HostedLinear
from .patcher import make_patcher
from .progress import Progress
from .streaming import StreamingNotice
from .transformer import REFERENCE_WEIGHTS, HostedTransformer

COMPUTE_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_BY_PREFERENCE = [torch.bfloat16, torch.float16, torch.float32]


class KontextModel(comfy.model_base.Flux):
    """ComfyUI's FLUX model (conditioning, schedule, latent format, memory estimate) around our transformer."""

    def __init__(
        self, model_config: Any, model_type: comfy.model_base.ModelType, hosted: HostedTransformer, path: Path
    ):
        super().__init__(model_config, model_type, unet_model=lambda **_: hosted)
        self.path = path  # of its file

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """ComfyUI's, and what `bridge.references` put into the conditioning; on the device once, not at every step."""
        conds: dict[str, Any] = super().extra_conds(**kwargs)
        where = {"device": kwargs.get("device"), "dtype": self.get_dtype_inference()}
        for cond in conds.values():
            if isinstance(cond, comfy.conds.CONDList):
                cond.cond = [tensor.to(**where) for tensor in cond.cond]
            elif isinstance(cond.cond, torch.Tensor) and cond.cond.is_floating_point():
                cond.cond = cond.cond.to(**where)
        if weights := kwargs.get(REFERENCE_WEIGHTS):
            conds[REFERENCE_WEIGHTS] = comfy.conds.CONDConstant(tuple(weights))
        return conds

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Packed weights cannot be saved under ComfyUI's names."""
        raise ValueError(
            "This MODEL was loaded by KontextLoadModel and is saved by no node: its weights are those of its file. "
            "To save a changed model, load the file with ComfyUI's own loader."
        )


def load(path: str | Path, compute_dtype: str = "auto", disable_dynamic: bool = False) -> Any:
    """The file at `path` as a ModelPatcher; weights stay mapped, read through once for scales that are no numbers.

    compute_dtype: 'auto' or a key of COMPUTE_DTYPES. disable_dynamic: for ComfyUI, which asks for a patcher without
    dynamic VRAM in this way. Raises CheckpointError for a file that is no FLUX.1.
    """
    checkpoint = open_checkpoint(path)
    config, weights = read_weights(checkpoint)
    read_through(checkpoint)
    transformer = build_transformer(config, weights, checkpoint.file_name, HostedLinear)
    stored = _stored_dtype(weights)
    load_device = comfy.model_management.get_torch_device()
    if compute_dtype == "auto":
        cast = comfy.model_management.unet_manual_cast(stored, load_device, _BY_PREFERENCE)
    else:
        cast = COMPUTE_DTYPES[compute_dtype]
    kind = comfy.supported_models.Flux if config.guidance_embeds else comfy.supported_models.FluxSchnell
    flow = comfy.model_base.ModelType.FLUX if config.guidance_embeds else comfy.model_base.ModelType.FLOW
    model_config = kind(_unet_config(config))
    model_config.set_inference_dtype(stored, cast)
    model = KontextModel(model_config, flow, HostedTransformer(transformer, stored), Path(path))
    patcher = make_patcher(model, load_device, comfy.model_management.unet_offload_device(), disable_dynamic)
    patcher.cached_patcher_init = (load, (path, compute_dtype))
    StreamingNotice(checkpoint.file_name).attach(patcher)
    logging.info("KontextKit: %s: %s", checkpoint.file_name, _summary(config, weights, cast or stored))
    return patcher


def read_through(checkpoint: Checkpoint) -> None:
    """Every block's scale is looked at, which reads the file once; the node shows how far it is."""
    progress, n_read = Progress(sum(each.data.nbytes for each in checkpoint.tensors.values()), "Reading the file"), 0

    def read(n_bytes: int) -> None:
        nonlocal n_read
        n_read += n_bytes
        progress.at(n_read)

    check_scales(checkpoint.file_name, checkpoint.tensors, read)


def _stored_dtype(weights: Weights) -> torch.dtype:
    """What most weights are stored as; packed and float32 weights count as bfloat16, FLUX's own precision."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in weights.values():
        is_half = tensor.data.dtype in (torch.float16, torch.bfloat16)
        sizes[tensor.data.dtype if is_half else torch.bfloat16] += tensor.data.nbytes
    return sizes.most_common(1)[0][0]


def _unet_config(config: FluxConfig) -> dict[str, Any]:
    """The configuration under ComfyUI's names, as `comfy.model_detection` would find it."""
    channels = TOKEN_CHANNELS // PATCH**2
    return {
        "image_model": "flux",
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": PATCH,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": 4.0,
        "depth": config.num_layers,
        "depth_single_blocks": config.num_single_layers,
        "axes_dim": list(config.axes_dims_rope),
        "theta": THETA,
        "context_in_dim": config.joint_attention_dim,
        "vec_in_dim": config.pooled_projection_dim,
        "guidance_embed": config.guidance_embeds,
        "qkv_bias": True,
        "txt_ids_dims": [],
    }


def _summary(config: FluxConfig, weights: Weights, compute: torch.dtype) -> str:
    n_bytes: Counter[str] = Counter()
    for tensor in weights.values():
        n_bytes[tensor.qtype] += tensor.data.nbytes
    types = ", ".join(f"{qtype} {size / 1e6:.0f} MB" for qtype, size in n_bytes.most_common())
    return (
        f"{config.num_layers} double and {config.num_single_layers} single blocks, {config.hidden_size} wide; "
        f"{types}; computes in {str(compute).removeprefix('torch.')}"
    )
