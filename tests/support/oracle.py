"""ComfyUI's own Flux and ours over the same random weights, and what to feed them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Twins:
    """The same weights twice: ComfyUI's own module and ours, plus the file they share."""

    core: Any
    ours: Any
    path: Path


def make_twins(folder: Path, guidance: bool) -> Twins:
    import comfy.ops
    from comfy.ldm.flux.model import Flux
    from kontextkit.bridge.model import load
    from safetensors.torch import save_file

    core = Flux(
        image_model="flux",
        in_channels=16,
        out_channels=16,
        vec_in_dim=32,
        context_in_dim=64,
        hidden_size=256,
        mlp_ratio=4.0,
        num_heads=2,
        depth=2,
        depth_single_blocks=3,
        axes_dim=[16, 56, 56],
        theta=10000,
        patch_size=2,
        qkv_bias=True,
        guidance_embed=guidance,
        txt_ids_dims=[],
        dtype=torch.float32,
        operations=comfy.ops.disable_weight_init,
    ).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in core.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    path = folder / f"twin-{guidance}.safetensors"
    save_file({name.replace("_norm.weight", "_norm.scale"): t for name, t in core.state_dict().items()}, path)
    ours = load(path, "float32").model.diffusion_model
    return Twins(core.to(DEVICE), ours.to(DEVICE), path)


def error(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the 2-norm."""
    return ((ours - expected).norm() / expected.norm()).item()


def inputs(size=(12, 10), batch=1, references=(), seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE)

    call = {
        "x": normal(batch, 16, *size),
        "timestep": torch.linspace(0.2, 0.9, batch, device=DEVICE),
        "context": normal(batch, 7, 64),
        "y": normal(batch, 32),
        "guidance": torch.tensor([2.5], device=DEVICE),
    }
    return call | ({"ref_latents": [normal(batch, 16, *at) for at in references]} if references else {})


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(seed, references=(), guidance=2.5, **more):
    values = {"pooled_output": normal(1, 32, seed=seed), "guidance": guidance} | more
    if references:
        values["reference_latents"] = [normal(1, 16, *size, seed=9) for size in references]
    return [[normal(1, 7, 64, seed=seed + 1), values]]


POSITIVE, NEGATIVE = conditioning(1, references=[(16, 12), (9, 7)]), conditioning(5)


def latent(batch=1, **more):
    return {"samples": normal(batch, 16, 16, 12, seed=7), **more}


def k_sampler(model, cfg=1.0, positive=POSITIVE, start=None, **more):
    import nodes

    options = {"seed": 3, "steps": 4, "cfg": cfg, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0} | more
    return nodes.KSampler().sample(
        model, positive=positive, negative=NEGATIVE, latent_image=start or latent(), **options
    )[0]["samples"]
