"""The tensors that a file holds for one module, put together as an adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import LoraError
from .adapters import Adapter, ColumnDoRA, Kronecker, LowRank

AGAIN = "The file is damaged or was not saved to the end; download or save it again."
Parts = Mapping[str, Tensor]
Scale = Callable[[int | None], float]
Check = Callable[[tuple[int, int]], None]


def make_adapter(where: str, parts: Parts, default_scale: Scale, check_shape: Check) -> Adapter | None:
    """The adapter that these parts are, by `dialects.split_key`'s names; None where they hold no matrices.

    where: the file and the module, to begin messages with. default_scale: rank -> alpha / rank, where the parts have
    no alpha; the rank is None where there is none. check_shape: raises LoraError where the module is not (out, in);
    asked before anything is multiplied, for a small file can hold the factors of a huge matrix.
    Raises LoraError for parts that are missing, do not fit each other, or are no numbers.
    """
    for name, part in parts.items():
        _check(where, name, part)

    def scale(rank: int | None) -> float:
        if "alpha" not in parts:
            return default_scale(rank)
        if rank is None:  # LyCORIS scales no pair of whole factors; AI-Toolkit even writes an infinite alpha there
            return 1.0
        alpha = float(parts["alpha"].item())
        if not math.isfinite(alpha):
            raise LoraError(f"{where} has {alpha} as its alpha, expected a number. {AGAIN}")
        return alpha / rank

    if any(name.startswith("lokr") for name in parts):
        return _kronecker(where, parts, scale, check_shape)
    if any(name.startswith("hada") for name in parts):
        low_rank = _hadamard(where, parts, scale, check_shape)
    elif "down" in parts or "up" in parts:
        down, up = _pair(where, parts, "down", "up")
        check_shape((len(up), down.shape[1]))
        low_rank = LowRank(down, up, scale(len(down)))
    else:
        return None
    return _with_magnitude(where, low_rank, parts["magnitude"]) if "magnitude" in parts else low_rank


def by(shape: Iterable[int]) -> str:
    """A shape as a person writes it: 3072 x 64."""
    return " x ".join(map(str, shape)) or "a single number"


def _check(where: str, name: str, part: Tensor) -> None:
    if name == "alpha":
        if part.numel() != 1:
            raise LoraError(f"{where} has an alpha of {part.numel()} numbers, expected one. {AGAIN}")
        return
    if not part.is_floating_point():
        raise LoraError(f"{where} has {name!r} as {part.dtype}, expected floats. Save it as BF16 or F16.")
    if 0 in part.shape:
        raise LoraError(
            f"{where} has rank 0: {name!r} is {by(part.shape)}, expected at least one row and column. "
            "There is nothing in it to apply; train or extract it again with a rank of 1 or more."
        )
    numbers = part.float() if part.dtype.itemsize == 1 else part
    if not all(bound.isfinite() for bound in numbers.aminmax()):  # one pass, no copy
        raise LoraError(f"{where} has NaN or infinity in {name!r}, expected numbers. {AGAIN}")


def _matrix(where: str, parts: Parts, name: str) -> Tensor:
    matrix = parts[name]
    if matrix.ndim == 4 and matrix.shape[2:] == (1, 1):  # a Linear written as a convolution
        matrix = matrix[..., 0, 0]
    if matrix.ndim != 2:
        raise LoraError(f"{where} has {name!r} of shape {list(matrix.shape)}, expected a matrix. {AGAIN}")
    return matrix


def _pair(where: str, parts: Parts, first: str, second: str) -> tuple[Tensor, Tensor]:
    """Two matrices that share a rank; up and its like have it last, down and its like first."""
    for here, gone in ((first, second), (second, first)):
        if gone not in parts:
            raise LoraError(f"{where} has {here!r} but no {gone!r}; one is of no use without the other. {AGAIN}")
    one, two = _matrix(where, parts, first), _matrix(where, parts, second)
    ranks = (one.shape[0], two.shape[1]) if first == "down" else (one.shape[1], two.shape[0])
    if ranks[0] != ranks[1]:
        raise LoraError(
            f"{where} has {first!r} of rank {ranks[0]} ({by(one.shape)}) and {second!r} of rank {ranks[1]} "
            f"({by(two.shape)}); expected one rank. {AGAIN}"
        )
    return one, two


def _hadamard(where: str, parts: Parts, scale: Scale, check_shape: Check) -> LowRank:
    """LoHa as low rank: (A1 B1) o (A2 B2) = (A1 . A2) (B1 * B2), rows times rows and columns times columns.

    "." takes every product of two entries of a row (face-splitting), "*" of a column (Khatri-Rao).
    https://arxiv.org/abs/2108.06098, proposition 1
    """
    _refuse_tucker(where, parts)
    (a1, b1), (a2, b2) = (_pair(where, parts, f"hada_w{i}_a", f"hada_w{i}_b") for i in (1, 2))
    if (len(a1), b1.shape[1]) != (len(a2), b2.shape[1]):
        raise LoraError(
            f"{where} multiplies {len(a1)} x {b1.shape[1]} with {len(a2)} x {b2.shape[1]}; expected one shape. {AGAIN}"
        )
    check_shape((len(a1), b1.shape[1]))
    rank = len(b1) * len(b2)
    if rank > min(len(a1), b1.shape[1]):
        raise LoraError(
            f"{where} is LoHa of rank {len(b1)} x {len(b2)}, more than a Linear of {len(a1)} x {b1.shape[1]} has. "
            "Merge it into the model, or train it with a rank of 16 or less."
        )
    up = torch.einsum("or,os->ors", a1.float(), a2.float()).flatten(1)  # float32: products of small halves vanish
    down = torch.einsum("ri,si->rsi", b1.float(), b2.float()).flatten(0, 1)
    return LowRank(down, up, scale(len(b1)))


def _kronecker(where: str, parts: Parts, scale: Scale, check_shape: Check) -> Kronecker:
    _refuse_tucker(where, parts)
    if "magnitude" in parts:
        raise LoraError(
            f"{where} is LoKr with DoRA's magnitude, which this pack cannot apply. Use a LoKr or a DoRA alone; "
            "most trainers switch it off with dora_wd=False."
        )
    left, right = (_factor(where, parts, name) for name in ("lokr_w1", "lokr_w2"))
    check_shape((len(left[0]) * len(right[0]), left[-1].shape[1] * right[-1].shape[1]))
    rank = next((len(factor[1]) for factor in (right, left) if len(factor) == 2), None)
    whole = [factor[0] if len(factor) == 1 else factor[0].float() @ factor[1].float() for factor in (left, right)]
    return Kronecker(whole[0], whole[1], scale(rank))


def _factor(where: str, parts: Parts, name: str) -> tuple[Tensor, ...]:
    """A factor of LoKr: one matrix, or two whose product it is."""
    if name in parts:
        return (_matrix(where, parts, name),)
    if not any(part.startswith(name) for part in parts):
        raise LoraError(f"{where} has a factor of LoKr but no {name!r}; one is of no use without the other. {AGAIN}")
    return _pair(where, parts, f"{name}_a", f"{name}_b")


def _refuse_tucker(where: str, parts: Parts) -> None:
    core = next((name for name in parts if name.endswith(("_t1", "_t2"))), None)
    if core:
        raise LoraError(
            f"{where} has {core!r}, the core of a convolution's Tucker decomposition; FLUX.1 has no convolutions. "
            "Choose a LoRA made for FLUX.1."
        )


def _with_magnitude(where: str, low_rank: LowRank, magnitude: Tensor) -> LowRank | ColumnDoRA:
    """DoRA: (out,) or (out, 1) measures rows, as peft and LyCORIS 3 do; (1, in) columns, as OneTrainer does."""
    n_out, n_in = low_rank.shape
    if magnitude.shape in ((n_out,), (n_out, 1)):
        return replace(low_rank, magnitude=magnitude.reshape(-1))
    if magnitude.shape == (1, n_in):
        return ColumnDoRA(low_rank, magnitude.reshape(-1))
    raise LoraError(
        f"{where} has a DoRA magnitude of shape {list(magnitude.shape)}; a Linear of {n_out} x {n_in} has "
        f"[{n_out}], [{n_out}, 1] or [1, {n_in}]. {AGAIN}"
    )


def fit(where: str, adapter: Adapter, outs: list[int], swapped: bool) -> list[Adapter]:
    """An adapter for each of the Linears, `outs` rows high, that the file has as one from top to bottom.

    swapped: the file has the lower half of the rows first.
    """
    if len(outs) == 1 and not swapped:
        return [adapter]
    if isinstance(adapter, Kronecker) and swapped:
        if len(adapter.left) % 2:
            raise LoraError(
                f"{where} is LoKr of {len(adapter.left)} x {len(adapter.right)} rows; its halves have to change "
                "places and do not part. Leave the last modulation out of the LoRA, or use diffusers' names."
            )
        return [replace(adapter, left=torch.cat(adapter.left.chunk(2)[::-1]))]
    if not isinstance(adapter, Kronecker) and swapped:
        return [adapter.with_halves_swapped()]
    if isinstance(adapter, ColumnDoRA):
        raise LoraError(
            f"{where} is a DoRA whose norms run over q, k and v together, which are apart in this model. "
            "Train it with the norm on the output axis, or on separate q, k and v as OneTrainer does."
        )
    ends = [sum(outs[: i + 1]) for i in range(len(outs))]
    return [adapter.cut(end - out, end) for out, end in zip(outs, ends, strict=True)]
