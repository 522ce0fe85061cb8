"""The columns of others for optimize_steps.py: diffusers and ComfyUI, each as its own documentation has it run."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from random_files import COMPUTE
from sampling import SCHEDULER, sample
from timed_runs import Sample
from torch import Tensor

EASY_CACHE = (0.2, 0.15, 0.95)  # the node's own defaults: threshold, start and end


class Diffusers:
    """diffusers' `FluxTransformer2DModel` in a plain Euler loop, over the very weights that stand behind our MODEL."""

    def __init__(self, patcher: Any, arguments: dict[str, Any]):
        """arguments: of one pass, as ComfyUI's `Flux.forward` takes them."""
        from kontextkit.engine.flux.positions import lay_out

        self.model, self.size = patcher.model, arguments["x"].shape[-2:]
        reference = self.model.process_latent_in(arguments["ref_latents"][0])
        (self.noise, self.reference), ids = lay_out([arguments["x"], reference], "offset")
        context = arguments["context"]
        self.given = {
            "encoder_hidden_states": context,
            "pooled_projections": arguments["y"],
            "guidance": arguments["guidance"],
            "img_ids": ids.reshape(-1, 3),
            "txt_ids": ids.new_zeros(context.shape[1], 3),
            "return_dict": False,
        }

    def transformer(self) -> Any:
        """diffusers' own module around the same tensors."""
        ours: Any = self.model.diffusion_model.transformer
        with torch.device("meta"):
            plain = type(ours).from_config(ours.config)
        weights = {
            name: tensor.to(COMPUTE) for name, tensor in ours.state_dict().items()
        }  # on a card, BF16 as they are
        plain.requires_grad_(False).load_state_dict(weights, assign=True)
        return plain.eval()

    def plain(self) -> Sample:
        """Eager."""
        return self.sampled(self.transformer())

    def compiled(self) -> Sample:
        """Blocks compiled in regions."""
        transformer = self.transformer()
        transformer.compile_repeated_blocks(fullgraph=True)
        return self.sampled(transformer)

    def first_block_cache(self, steps: Collection[int]) -> Sample:
        """Its first-block cache, whose threshold is moved before each step so that these are computed."""
        from diffusers import FirstBlockCacheConfig
        from diffusers.hooks.first_block_cache import _FBC_LEADER_BLOCK_HOOK

        transformer = self.transformer()
        transformer.enable_cache(FirstBlockCacheConfig(threshold=0.12))
        hook = transformer.transformer_blocks[0]._diffusers_hook.get_hook(_FBC_LEADER_BLOCK_HOOK)

        @contextmanager
        def around(step: int) -> Iterator[None]:
            if step == 0:
                transformer._reset_stateful_cache()
            hook.threshold = -1.0 if step in steps else math.inf
            with transformer.cache_context("cond"):
                yield

        return self.sampled(transformer, around, steps)

    def sampled(
        self, transformer: Any, around: Callable[[int], Any] | None = None, steps: Collection[int] | None = None
    ) -> Sample:
        """What samples with the transformer; steps: the computed ones, if not all."""

        def run(n_steps: int, after_step: Callable[[], None]) -> tuple[Tensor, list[str]]:
            from comfy.samplers import calculate_sigmas

            sigmas = calculate_sigmas(self.model.model_sampling, SCHEDULER, n_steps).tolist()
            x = self.noise
            for step, (sigma, next_sigma) in enumerate(pairwise(sigmas)):
                if around is None:
                    velocity = self.velocity(transformer, x, sigma)
                else:
                    with around(step):
                        velocity = self.velocity(transformer, x, sigma)
                x = (x.float() + (next_sigma - sigma) * velocity.float()).to(x.dtype)
                after_step()
            computed = range(n_steps) if steps is None else {0, *steps}
            return self.picture(x), ["computed" if step in computed else "skipped" for step in range(n_steps)]

        return run

    def velocity(self, transformer: Any, x: Tensor, sigma: float) -> Tensor:
        """Of the target's tokens x (1, L, 64)."""
        tokens = torch.cat((x, self.reference), dim=1)
        timestep = torch.full(x.shape[:1], sigma, dtype=x.dtype, device=x.device)
        (out,) = transformer(hidden_states=tokens, timestep=timestep, **self.given)
        return out[:, : x.shape[1]]

    def picture(self, tokens: Tensor) -> Tensor:
        """The latent as ComfyUI's sampler gives it."""
        from kontextkit.engine.flux.positions import unpatchify

        return self.model.process_latent_out(unpatchify(tokens.float(), *self.size)).cpu()


class ComfyUI:
    """ComfyUI's own FLUX under its own sampler."""

    def __init__(self, patcher: Any, noise: Tensor, conditioning: list[Any]):
        self.patcher, self.noise, self.conditioning = patcher, noise, conditioning

    def plain(self) -> Sample:
        """As the core loader gives it."""
        return self.sampled(self.patcher)

    def compiled(self) -> Sample:
        """After the node TorchCompileModel."""
        from comfy_extras.nodes_torch_compile import TorchCompileModel

        (model,) = TorchCompileModel.execute(self.patcher, "inductor").result
        return self.sampled(model)

    def easy_cache(self) -> Sample:
        """After the node EasyCache; what it skips of random weights' steps means nothing."""
        from comfy_extras.nodes_easycache import EasyCacheNode

        (model,) = EasyCacheNode.execute(self.patcher, *EASY_CACHE, False).result
        return self.sampled(model, watch=True)

    def sampled(self, model: Any, watch: bool = False) -> Sample:
        """What samples with the model; watch: see which steps reach its first block."""

        def run(n_steps: int, after_step: Callable[[], None]) -> tuple[Tensor, list[str]]:
            kinds: list[str] = []
            reached: list[bool] = []

            def next_step(*_: Any) -> None:
                after_step()
                kinds.append("computed" if reached or not watch else "skipped")
                reached.clear()

            first = model.model.diffusion_model.double_blocks[0]
            hook = first.register_forward_pre_hook(lambda *_: reached.append(True)) if watch else None
            try:
                return sample(model, self.noise, n_steps, self.conditioning, next_step), kinds
            finally:
                if hook:
                    hook.remove()

        return run
