"""A tiny FLUX with random adapters that peft itself made and merged."""

import torch
from torch import nn

WIDTH = 128
RANK = 4


def tiny_flux():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    dims = {"joint_attention_dim": 96, "pooled_projection_dim": 64, "guidance_embeds": True}
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=2, num_attention_heads=1, **dims)
    return model.requires_grad_(False)


def shapes_of(model):
    """What `read_lora` is told of a model."""
    return {n: (m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def weights_of(model):
    return {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def merged_by_peft(config):
    """(weights before, {peft's key: tensor}, weights after), of `tiny_flux` with a random adapter of this config."""
    import peft

    model = tiny_flux()
    before = weights_of(model)
    config.target_modules = list(before)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = parameter * (1 + 0.2 * noise) if "magnitude" in name else 0.3 * noise
    state = {key: t.detach().clone() for key, t in peft.get_peft_model_state_dict(wrapped).items()}
    return before, state, weights_of(wrapped.merge_and_unload())


def new_weight(weight, adapter):
    """What the adapter makes of a base weight, by the formulas of engine/lora/adapters.py."""
    merged = weight + adapter.delta()
    magnitude = getattr(adapter, "magnitude", None)
    if magnitude is None:
        return merged
    if hasattr(adapter, "low_rank"):
        return magnitude * merged / merged.norm(dim=0)
    return magnitude[:, None] * merged / merged.norm(dim=1, keepdim=True)


def worst_error(lora, before, after):
    """The largest error of a Linear, relative to its change; every Linear that changed must have an adapter."""
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(lora.adapters) == changed
    return max(
        ((new_weight(before[n], lora.adapters[n]) - after[n]).norm() / (after[n] - before[n]).norm()).item()
        for n in changed
    )


def low_rank(n_out, n_in, rank=RANK, seed=0):
    """(down, up) of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, n_in, generator=generator), torch.randn(n_out, rank, generator=generator)


def pair(stem, n_out=128, n_in=128, rank=4):
    """A plain LoRA for one Linear."""
    down, up = low_rank(n_out, n_in, rank)
    return {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
