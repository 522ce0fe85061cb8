"""The transformer's lessons: editing, then guidance."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.flux.config import FluxConfig
from ...engine.flux.hooks import BlockHooks
from ...engine.training.flow_matching import Conditions, draw_sigmas, flow_matching_errors, guidance_loss
from ...engine.training.loop import Loop
from ...engine.words.encoder import WordEncoder
from ...engine.words.vocabulary import PADDING
from .guidance import guidance_embedder_alone
from .pool import SHARES, Group
from .recipe import Recipe

Pool = dict[int, Group]
OTHER_SIZES = 0.3  # share of batches whose pictures are not of the main size
SHIFT = 1.8  # of training's noise levels towards noise, where an edit is decided
HARD_AT = 0.95  # the noise level at which it is seen how hard an edit is
LEAST_CHANCE, MOST_CHANCE = 0.3, 10.0  # of an edit, over that of one with the mean error
CHANGE, EDIT_WEIGHT = 0.7, 5.0  # from which difference of a latent channel a place is edited, and how much it counts


class DemoModel(nn.Module):
    """Transformer and words, learnt together."""

    def __init__(self, recipe: Recipe, n_words: int):
        super().__init__()
        from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

        config = FluxConfig(
            in_channels=64,
            num_layers=recipe.n_double,
            num_single_layers=recipe.n_single,
            num_attention_heads=recipe.width // 128,
            joint_attention_dim=recipe.width,
            pooled_projection_dim=recipe.width,
            guidance_embeds=True,
        )
        self.transformer: Any = FluxTransformer2DModel(**config.as_kwargs())
        self.words = WordEncoder(n_words, recipe.width)
        nn.init.normal_(self.words.words.weight, std=1.0)
        nn.init.normal_(self.words.positions.weight, std=0.5)
        start_at_zero(self.transformer)


def start_at_zero(transformer: Any) -> None:
    """Modulations and the last layer begin at zero, so that blocks begin as nothing (arXiv:2212.09748)."""
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (name.endswith(".linear") or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)


class Lessons:
    """Batches from pools of edits and the loss on each."""

    def __init__(
        self, recipe: Recipe, model: DemoModel, device: torch.device, rank: int, hooks: BlockHooks | None = None
    ):
        self.recipe, self.model, self.device, self.rank, self.hooks = recipe, model, device, rank, hooks

    def editing(self, main: Pool, others: list[Pool], folder: Path, report: Callable[[str], None]) -> None:
        """Flow matching on pictures of the main size and of others."""
        r = self.recipe
        loop = self._loop(r.edit_steps, r.rate)
        self._go(loop, lambda step: self._flow(step, [main, *others]), folder, "editing", report)

    def guidance(self, main: Pool, others: list[Pool], folder: Path, report: Callable[[str], None]) -> None:
        """Classifier-free guidance into the guidance embedding; the model so far is the teacher."""
        r = self.recipe
        teacher = copy.deepcopy(self.model).requires_grad_(False)

        def loss(step: int) -> Tensor:
            return self._guided(step, [main, *others], teacher)

        with guidance_embedder_alone(self.model, self.model.transformer.time_text_embed.guidance_embedder):
            loop = Loop(self.model, r.guidance_steps, r.guidance_rate, decay_from=0.2)
            self._go(loop, loss, folder, "guidance", report)

    @torch.no_grad()
    def prefer_hard(self, pool: Pool) -> Pool:
        """The pool whose edits are drawn as often as the model, as it is now, errs on them."""
        harder = {}
        for n_references, group in pool.items():
            n = group.n_edits(self.recipe.tokens)
            parts = zip(group.latents.split(n), group.ids.split(n), strict=True)
            errors = torch.cat([self._errors(*part, self._seeded(), sigma=HARD_AT) for part in parts])
            harder[n_references] = replace(group, chances=(errors / errors.mean()).clamp(LEAST_CHANCE, MOST_CHANCE))
        return harder

    def _seeded(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.recipe.seed)

    def _errors(
        self,
        latents: Tensor,
        ids: Tensor,
        generator: torch.Generator,
        method: str = "offset",
        sigma: float | None = None,
    ) -> Tensor:
        """(B,), of the velocity. sigma: the noise level, drawn where none is given."""
        clean, noise, drawn = self._noisy(latents, generator)
        at = drawn if sigma is None else torch.full_like(drawn, sigma)
        with torch.autocast(self.device.type, torch.bfloat16):
            given = self._conditions(self.model, ids, latents, torch.ones_like(at), method)
            weight = edit_weight(clean, given.references)
            return flow_matching_errors(self.model.transformer, clean, noise, at, given, self.hooks, weight)

    def _loop(self, n_steps: int, rate: float) -> Loop:
        """Muon takes the matrices of attention and MLPs; modulations, embedders and vectors are AdamW's."""
        blocks = [(name, p) for name, p in self.model.named_parameters() if "transformer_blocks" in name]
        matrices = [name for name, p in blocks if p.ndim == 2 and "norm" not in name]
        return Loop(self.model, n_steps, rate, decay_from=0.3, matrices=matrices)

    def _go(
        self,
        loop: Loop,
        loss: Callable[[int], Tensor],
        folder: Path,
        name: str,
        report: Callable[[str], None],
    ) -> None:
        checkpoint = folder / f"{name}.pt"
        if loop.resume(checkpoint):
            report(f"{name}: going on from step {loop.step}")
        loop.run(loss, checkpoint, lambda text: report(f"{name}: {text}"), max(1, loop.n_steps // 25))
        self.model.load_state_dict(loop.ema.module.state_dict())

    def _batch(self, step: int, pools: list[Pool], n_tokens: int) -> tuple[Tensor, Tensor, str, torch.Generator]:
        """latents (B, 1 + references, 16, h, w), ids (B, L), a placement method and this step's generator."""
        seed = self.recipe.seed + 1000 * step
        choose = torch.Generator().manual_seed(seed)  # alike on all processes: equal work
        generator = torch.Generator(self.device).manual_seed(seed + 1 + self.rank)
        chances = torch.tensor([1 - OTHER_SIZES, *(OTHER_SIZES / (len(pools) - 1) for _ in pools[1:])])
        pool = pools[int(torch.multinomial(chances, 1, generator=choose))]
        n_references = int(torch.multinomial(torch.tensor(list(SHARES.values())), 1, generator=choose))
        group = pool[n_references]
        chosen = group.choose(group.n_edits(n_tokens), generator)
        method = "index" if torch.rand((), generator=choose) < 0.25 else "offset"
        return group.latents[chosen], group.ids[chosen], method, generator

    def _flow(self, step: int, pools: list[Pool]) -> Tensor:
        latents, ids, method, generator = self._batch(step, pools, self.recipe.tokens)
        dropped = torch.rand(len(ids), 1, generator=generator, device=self.device) < self.recipe.dropped_prompts
        return self._errors(latents, ids.masked_fill(dropped, PADDING), generator, method).mean()

    def _guided(self, step: int, pools: list[Pool], teacher: DemoModel) -> Tensor:
        latents, ids, method, generator = self._batch(step, pools, self.recipe.tokens * 2 // 3)
        clean, noise, sigma = self._noisy(latents, generator)
        x = torch.lerp(clean, noise, sigma[:, None, None, None])
        share = torch.rand(len(ids), generator=generator, device=self.device).square()
        guidance = 1 + (self.recipe.most_guidance - 1) * share
        with torch.autocast(self.device.type, torch.bfloat16):
            given = self._conditions(self.model, ids, latents, guidance, method)
            with torch.no_grad():
                taught = self._conditions(teacher, ids, latents, guidance, method)
                without = self._conditions(teacher, torch.zeros_like(ids), latents, guidance, method)
            student, instructor = self.model.transformer, teacher.transformer
            return guidance_loss(student, instructor, x, sigma, given, taught, without, self.hooks)

    def _noisy(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        clean = latents[:, 0].float()
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        return clean, noise, draw_sigmas(len(clean), generator, SHIFT)

    def _conditions(self, model: DemoModel, ids: Tensor, latents: Tensor, guidance: Tensor, method: str) -> Conditions:
        context, pooled = model.words(ids)
        return Conditions(context, pooled, guidance, list(latents[:, 1:].float().unbind(1)), method)


def edit_weight(clean: Tensor, references: Sequence[Tensor]) -> Tensor | None:
    """(B, 1, H, W): places that differ from the first reference count more; most of a picture is only copied."""
    if not references:
        return None
    changed = (clean - references[0]).abs().amax(dim=1, keepdim=True) > CHANGE
    return 1 + (EDIT_WEIGHT - 1) * changed.float()
