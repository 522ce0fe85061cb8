"""One forward pass of FLUX over tokens: the block loop this pack owns.

It runs diffusers' `FluxTransformer2DModel` submodule by submodule, so that a host can stand around every block and
choose the attention, and so that later work (caching, reuse, fusion) has one place to live.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import Attend, Module, clamp_half, modulate
from .hooks import BlockHooks, BlockPlace, Stream
from .rope import embed_positions


def predict_velocity(
    transformer: Module,
    img: Tensor,
    img_ids: Tensor,
    txt: Tensor,
    txt_ids: Tensor,
    timestep: Tensor,
    pooled: Tensor | None,
    guidance: Tensor | None,
    n_target: int,
    mask: Tensor | None = None,
    hooks: BlockHooks | None = None,
    pe: Tensor | None = None,
) -> Tensor:
    """Velocity (B, n_target, C) of the first `n_target` img tokens.

    img: (B, L_img, C) target then reference tokens; txt: (B, L_txt, D_txt); ids: (1 or B, L, 3).
    pe: what `rope.embed_positions` makes of the ids, where it is known and hooks leave these as they are.
    timestep: (B,) in 0-1; pooled: (B, >= D_pooled) or None for zeros; guidance: (1 or B,) or None for none.
    """
    hooks = hooks or BlockHooks()
    if hooks.references and hooks.references.begin():
        img, img_ids = img[:, :n_target], img_ids[:, :n_target]
    img = transformer.x_embedder(img)
    vec = embed_conditions(transformer.time_text_embed, timestep, pooled, guidance, img)
    txt = transformer.context_embedder(txt)
    img, txt, img_ids, txt_ids = hooks.embedded(img, txt, img_ids, txt_ids)
    if hooks.references:
        hooks.references.n_own = txt.shape[1] + n_target  # a patch may have added text
    if pe is None:
        pe = embed_positions(torch.cat((txt_ids, img_ids), dim=1), transformer.config.axes_dims_rope)
    stream = Stream(img, txt, vec, pe[:, :, : txt.shape[1] + img.shape[1]], mask)
    run_blocks(transformer, stream, hooks, n_target)
    scale, shift = transformer.norm_out.linear(F.silu(vec)).unsqueeze(1).chunk(2, dim=-1)
    return transformer.proj_out(modulate(stream.img[:, :n_target], shift, scale))


def run_blocks(transformer: Module, stream: Stream, hooks: BlockHooks, n_target: int) -> None:
    """All blocks over the stream, of which afterwards the first `n_target` img tokens hold the result.

    A cache sees these tokens alone: the references, which hardly change, would hide how much they do.
    """
    cache = hooks.cache
    before = stream.img[:, :n_target]
    run_double_blocks(transformer.transformer_blocks, stream, hooks, range(1))
    after = stream.img[:, :n_target]
    rest = cache.predict(after - before) if cache else None
    if rest is not None:
        hooks.skipped()
        stream.img = after + rest
        return
    if cache:
        after = after.clone()  # where a patch leaves the next block out, its residual is added to these very tokens
    hooks.rest(stream, lambda s: run_other_blocks(transformer, s, hooks))
    if cache:
        cache.keep(stream.img[:, :n_target] - after)
    if hooks.references:
        hooks.references.computed()


def run_other_blocks(transformer: Module, stream: Stream, hooks: BlockHooks) -> None:
    """All blocks but the first over the stream, which afterwards holds their result."""
    run_double_blocks(transformer.transformer_blocks, stream, hooks, range(1, len(transformer.transformer_blocks)))
    stream.img = clamp_half(stream.img)
    run_single_blocks(transformer.single_transformer_blocks, stream, hooks)


def run_double_blocks(blocks: Module, stream: Stream, hooks: BlockHooks, which: range) -> None:
    """Some double blocks over the stream, which afterwards holds their result."""
    for i in which:
        block, place = blocks[i], BlockPlace("double", i, len(blocks), stream.txt.shape[1])

        def run(s: Stream, block: Module = block, place: BlockPlace = place) -> tuple[Tensor, Tensor]:
            parts = hooks.first if hooks.first and place.index == 0 else hooks.parts
            return parts.double_block(block, s.img, s.txt, s.vec, *attention(hooks, place, s))

        stream.img, stream.txt = hooks.around(place, run, stream)
        add_residual(stream.img, hooks.residual(place))


def run_single_blocks(blocks: Module, stream: Stream, hooks: BlockHooks) -> None:
    """All single blocks over the stream, which afterwards holds their result.

    A single block knows one kind of token: hooks see text and image joined, text first, as `img`.
    """
    n_txt = stream.txt.shape[1]
    joined = torch.cat((stream.txt, stream.img), dim=1)
    for i, block in enumerate(blocks):
        place = BlockPlace("single", i, len(blocks), n_txt)

        def run(s: Stream, block: Module = block, place: BlockPlace = place) -> tuple[Tensor, Tensor]:
            return hooks.parts.single_block(block, s.img, s.vec, *attention(hooks, place, s)), s.txt

        joined, _ = hooks.around(place, run, Stream(joined, joined[:, :n_txt], stream.vec, stream.pe, stream.mask))
        add_residual(joined[:, n_txt:], hooks.residual(place))
    stream.txt, stream.img = joined[:, :n_txt], joined[:, n_txt:]


def attention(hooks: BlockHooks, place: BlockPlace, s: Stream) -> tuple[Attend, Tensor | None]:
    """The host's attention, and by what q and k are rotated before it: by pe or, where it does that itself, None."""
    early, late = (s.pe, None) if hooks.rotates else (None, s.pe)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if hooks.references:
            k, v = hooks.references.keys_values((place.kind, place.index), k, v)
        return hooks.attend(place, q, k, v, late, s.mask)

    return attend, early


def add_residual(img: Tensor, residual: Tensor | None) -> None:
    """Add to the first tokens in place; those of references that are left out have none."""
    if residual is not None:
        img[:, : residual.shape[1]] += residual[:, : img.shape[1]]


def embed_conditions(
    embed: Module, timestep: Tensor, pooled: Tensor | None, guidance: Tensor | None, like: Tensor
) -> Tensor:
    """vec (B, D): timestep, guidance (where the model has an embedder for it and one is given) and pooled text."""
    vec = embed_scalar(embed.timestep_embedder, timestep, like)
    guidance_embedder = getattr(embed, "guidance_embedder", None)
    if guidance_embedder is not None and guidance is not None:
        vec = vec + embed_scalar(guidance_embedder, guidance, like)
    n_pooled = embed.text_embedder.linear_1.in_features
    if pooled is None:
        pooled = like.new_zeros(like.shape[0], n_pooled)
    return vec + two_layers(embed.text_embedder, pooled[:, :n_pooled])


def embed_scalar(embedder: Module, value: Tensor, like: Tensor) -> Tensor:
    """value (B,) -> 256 sines and cosines -> (B, D) in like's dtype."""
    half = 128
    frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=value.device))
    angles = (1000 * value)[:, None].float() * frequencies
    waves = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return two_layers(embedder, waves.to(value.dtype).to(like.dtype))


def two_layers(embedder: Module, x: Tensor) -> Tensor:
    """Linear, SiLU, Linear."""
    return embedder.linear_2(F.silu(embedder.linear_1(x)))
