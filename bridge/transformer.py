"""The diffusion model that ComfyUI calls: latents and conditioning in, velocity out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor, nn

from ..engine.cache.references import n_bytes
from ..engine.flux.loop import predict_velocity
from ..engine.flux.positions import PATCH, Rope, lay_out, rotations, sizes_of, unpatchify
from ..engine.references.weights import arrange
from .hooks import ComfyHooks
from .prefetch import Prefetch

REFERENCE_WEIGHTS = "reference_weights"  # in a conditioning: `engine.references.weights.Weights` of each reference
ROPE_OPTIONS = {field.name for field in fields(Rope)}


class HostedTransformer(nn.Module):
    """diffusers' FLUX transformer with the call and the attributes of ComfyUI's `comfy.ldm.flux.model.Flux`."""

    patch_size = PATCH
    default_ref_method = "offset"

    def __init__(self, transformer: nn.Module, dtype: torch.dtype):
        """dtype: what the weights count as when ComfyUI chooses the compute dtype."""
        super().__init__()
        self.transformer = transformer
        self.dtype = dtype

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Velocity (B, 16, H, W) at latent x (B, 16, H, W); the arguments are those of ComfyUI's Flux.

        timestep: (B,) in 0-1; context: (B, L, D) T5 states; y: (B, 768) pooled CLIP; guidance: (B,);
        ref_latents: (B, 16, h, w) each; control: ControlNet residuals.
        """
        options = {} if transformer_options is None else transformer_options
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, y, guidance, ref_latents, control, options, **kwargs)

    def _forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor | None = None,
        guidance: Tensor | None = None,
        ref_latents: list[Tensor] | None = None,
        control: dict[str, Any] | None = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        options = transformer_options or {}
        method = kwargs.get("ref_latents_method", self.default_ref_method)
        rope = Rope(**{k: v for k, v in (options.get("rope_options") or {}).items() if k in ROPE_OPTIONS})
        latents = [x, *(ref_latents or ())]
        tokens, img_ids = lay_out(latents, method, rope)
        n_target = tokens[0].shape[1]
        if ref_latents:
            options = options | {"reference_image_num_tokens": [t.shape[1] for t in tokens[1:]]}
        img = torch.cat(tokens, dim=1)
        arrangement = arrange(tuple(t.shape[1] for t in tokens[1:]), kwargs.get(REFERENCE_WEIGHTS, ()))
        if arrangement:
            order = torch.cat((torch.arange(n_target), n_target + arrangement.order)).to(img.device)
            img, img_ids = img[:, order], img_ids[:, order]
        img_ids = img_ids.expand(x.shape[0], -1, -1)
        transformer: Any = self.transformer  # nn.Module hides the types of what it holds
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        prefetch = Prefetch(blocks, x.device, options)
        shapes = (tuple(x.shape), tuple(context.shape), *(tuple(t.shape) for t in tokens[1:]))
        masked = kwargs.get("attention_mask") is not None
        n_references = 0 if masked else img.shape[1] - n_target
        lengths = (n_references, n_references and img.shape[1] + context.shape[1])
        numbers, of_all = (n_bytes(n, len(x), transformer.inner_dim, len(blocks), itemsize=1) for n in lengths)
        kept = (x.element_size() * numbers, numbers, of_all)
        hooks = ComfyHooks(options, control, prefetch, shapes, kept, arrangement.runs if arrangement else (), masked)
        pe = None
        if arrangement is None and not hooks.patches("post_input"):  # else tokens are others than those laid out
            axes = tuple(transformer.config.axes_dims_rope)
            pe = rotations(sizes_of(latents), method, rope, context.shape[1], axes, x.device)
        with hooks.timed():
            velocity = predict_velocity(
                self.transformer,
                img,
                img_ids,
                context,
                img_ids.new_zeros(x.shape[0], context.shape[1], img_ids.shape[-1]),
                timestep,
                y,
                guidance,
                n_target=n_target,
                mask=kwargs.get("attention_mask"),
                hooks=hooks,
                pe=pe,
            )
        prefetch.turn()
        return unpatchify(velocity, *x.shape[-2:])
