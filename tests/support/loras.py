"""Random adapters, what merging them gives, and a model to try them on."""

import torch
from kontextkit.engine.flux.loop import predict_velocity
from kontextkit.engine.lora.adapters import ColumnDoRA, Kronecker, LowRank
from kontextkit.engine.lora.branch import attached
from kontextkit.engine.lora.stack import LoraStack
from kontextkit.engine.quant import QuantLinear
from lora_files import new_weight

CPU = torch.device("cpu")


def linears(transformer):
    return {name: module for name, module in transformer.named_modules() if isinstance(module, QuantLinear)}


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(layer, rank=4, seed=1, dora=False):
    rows, columns = layer.out_features, layer.in_features
    down, up = random(rank, columns, seed=seed) * 0.2, random(rows, rank, seed=seed + 1) * 0.2
    norm = layer.decode(layer.weight, torch.float32).norm(dim=1)
    return LowRank(down, up, 0.5, norm * (1 + 0.2 * random(rows, seed=seed + 5)) if dora else None)


def kronecker(layer, seed=1):
    rows, columns = layer.out_features, layer.in_features
    left, right = random(8, 16, seed=seed), random(rows // 8, columns // 16, seed=seed + 1)
    return Kronecker(left * 0.1, right * 0.1, 0.7)


def column_dora(layer, seed=1):
    norm = layer.decode(layer.weight, torch.float32).norm(dim=0)
    return ColumnDoRA(low_rank(layer, seed=seed), norm * (1 + 0.2 * random(layer.in_features, seed=seed + 5)))


def cut_kronecker(layer, seed=1):
    """Rows of a product whose blocks do not begin where the Linear does."""
    rows, columns = layer.out_features, layer.in_features
    left, right = random(9, 16, seed=seed), random(rows // 8, columns // 16, seed=seed + 1)
    start = rows // 16
    return Kronecker(left * 0.1, right * 0.1, 0.7, (start, start + rows))


def merged(weight, adapter, strength):
    """As ComfyUI merges: W + strength * (W' - W)."""
    return weight + strength * (new_weight(weight, adapter) - weight)


def velocity(transformer, hooks=None):
    call = {"img": random(1, 12, 64, seed=1), "img_ids": random(1, 12, 3, seed=2).round().abs()}
    call |= {"txt": random(1, 5, 96, seed=3), "txt_ids": torch.zeros(1, 5, 3), "timestep": torch.tensor([0.6])}
    more = {"pooled": random(1, 64, seed=4), "guidance": torch.tensor([2.5]), "n_target": 12}
    with torch.inference_mode():
        return predict_velocity(transformer, **call, **more, hooks=hooks)


def error(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


def with_loras(transformer, loras, strengths, compute=velocity):
    stack = LoraStack(loras, torch.float32)
    with attached(transformer, stack.branches(transformer, strengths, CPU, torch.float32)):
        return compute(transformer)


KINDS = {
    "low rank": low_rank,
    "dora": lambda layer, seed=1: low_rank(layer, dora=True, seed=seed),
    "dora by columns": column_dora,
    "kronecker": kronecker,
    "cut kronecker": cut_kronecker,
}
