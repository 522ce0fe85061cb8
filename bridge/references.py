"""References in ComfyUI: encoded by its VAE, put into its conditioning, forecast for its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management
import node_helpers
import torch
from torch import Tensor

from ..engine.flux.positions import GRID
from ..engine.references import cost
from ..engine.references.plan import Plan
from ..engine.references.sizes import MEGAPIXEL
from ..engine.references.weights import Weights
from ..engine.tiers.forecast import BLOCKS_GB, pass_gb, step_seconds
from .encoded import encode
from .machine import machine, product_tflops
from .transformer import REFERENCE_WEIGHTS

Conditioning = list[list[Any]]
LATENTS, METHOD = "reference_latents", "reference_latents_method"  # ComfyUI's names in a conditioning
CHANNELS = 16
FULL_SIZE = 4096  # width of FLUX's text; a conditioning of another width is for a smaller model
WAYS = {"encoded": "encoded", "memory": "kept from before", "disk": "kept on disk"}


def check_vae(vae: Any) -> None:
    """Raises ValueError for a VAE of another kind than FLUX's."""
    channels, reduction = vae.latent_channels, vae.spacial_compression_encode()
    if channels != CHANNELS or reduction != 8:
        raise ValueError(
            f"vae: its latents have {channels} channels and 1/{reduction} of the side, FLUX.1 Kontext needs "
            f"{CHANNELS} and 1/8. Load ae.safetensors, FLUX.1's VAE."
        )


def with_references(
    conditioning: Conditioning, latents: Sequence[Tensor], weights: Sequence[Weights], layout: str
) -> Conditioning:
    """The conditioning with these references after those it has. weights: of each one's tokens."""
    if not latents:
        return conditioning
    method = {METHOD: "index" if layout == "index" else "offset"}
    out = []
    for context, values in node_helpers.conditioning_set_values(conditioning, method):
        more = {LATENTS: [*values.get(LATENTS, ()), *latents], REFERENCE_WEIGHTS: (*weights_of(values), *weights)}
        out.append([context, values | more])
    return out


def weights_of(values: Mapping[str, Any]) -> tuple[Weights, ...]:
    """Of the tokens of each reference in a conditioning's values; () where none were given."""
    n = len(values.get(LATENTS, ()))
    return (*values.get(REFERENCE_WEIGHTS, ()), *[()] * n)[:n]


def weigh(conditioning: Conditioning, weight: float) -> Conditioning:
    """The conditioning with all its references at one weight, 0-1, instead of what they had; 0 takes them out.

    Tokens that a mask left out stay so.
    """
    out = []
    for context, values in conditioning:
        seen = (tuple(weight if one else 0.0 for one in some) or (weight,) for some in weights_of(values))
        changed = values | {REFERENCE_WEIGHTS: tuple(seen)}
        if not weight:
            changed = {name: value for name, value in changed.items() if name not in (LATENTS, REFERENCE_WEIGHTS)}
        out.append([context, changed])
    return out


def encode_plan(vae: Any, plan: Plan, on_disk: bool) -> tuple[list[Tensor], list[Weights], list[str]]:
    """Latents of all that the plan encodes, the weights of their tokens, and where each came from."""
    latents, weights, ways = [], [], []
    for pixels, some in plan.encoded():
        comfy.model_management.throw_exception_if_processing_interrupted()
        latent, way = encode(vae, pixels, on_disk)
        expected = (1, CHANNELS, pixels.shape[1] // 8, pixels.shape[2] // 8)
        if latent.shape != expected:
            raise ValueError(
                f"vae: it made a latent of shape {list(latent.shape)}, FLUX.1 Kontext needs {list(expected)}. Load "
                "ae.safetensors, FLUX.1's VAE."
            )
        latents.append(latent)
        weights.append(some)
        ways.append(WAYS[way])
    return latents, weights, ways


def empty_latent(plan: Plan) -> dict[str, Tensor]:
    """What the sampler starts from."""
    width, height = (side // 8 for side in plan.size)
    device = comfy.model_management.intermediate_device()
    return {"samples": torch.zeros(1, CHANNELS, height, width, device=device)}


def forecast(conditioning: Conditioning, plan: Plan) -> list[str]:
    """What the references cost, some lines; says what fits where the card's memory is too small."""
    n_txt = conditioning[0][0].shape[1] if conditioning else cost.N_TXT
    n = plan.n_target + plan.n_references + n_txt
    lines = [f"Tokens: {plan.n_target} of the result, {plan.n_references} of references, {n_txt} of text."]
    if not conditioning or conditioning[0][0].shape[2] != FULL_SIZE:
        return lines
    times = cost.times_as_long(plan.n_target, plan.n_references, n_txt)
    lines.append(
        f"By count a step takes {times:.2f} times as long as without references ({cost.flop(n) / 1e12:.0f} TFLOP)."
    )
    here = machine()
    if seconds := step_seconds(n, product_tflops(), here.has_card):
        lines.append(f"That is about {seconds:.2g} s on {here.name}.")
    there = (here.card_bytes or here.host_bytes) / 1e9
    lines.append(f"Memory beside the weights: about {pass_gb(n):.1f} GB.")
    if (too_much := BLOCKS_GB + pass_gb(n) - there) > 0:
        fit = (plan.n_references - cost.n_that_take(too_much * 1e9)) * GRID * GRID / MEGAPIXEL // 0.1 / 10
        lines.append(
            f"With the {BLOCKS_GB:g} GB of weights that must be there at a time this is more than the {there:.1f} GB "
            "there are: " + (f"set total_megapixels to {fit:.1f} or less." if fit > 0.1 else "make the result smaller.")
        )
    return lines
