"""Encoders against ggml's C code, byte for byte."""

import numpy as np
import pytest
import torch
from ggml_oracle import by_ggml
from kontextkit.engine.quant import block_type
from kontextkit.engine.quant.encode import encodable_types, encode, workers

TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_0", "Q8_0"]
N_ROWS, N_COLUMNS = 48, 512


def each_group(values):
    return np.repeat(values, 16, axis=1)


def rows(kind):
    """Weights (rows, columns) float32 of a kind."""
    rng = np.random.default_rng(sum(kind.encode()))
    normal = rng.standard_normal((N_ROWS, N_COLUMNS))
    groups = (N_ROWS, N_COLUMNS // 16)
    weights = {
        "normal": lambda: normal * 0.05,
        "uniform": lambda: rng.uniform(-1, 1, normal.shape),
        "heavy-tailed": lambda: rng.standard_t(1.5, normal.shape) * 0.02,
        "constant": lambda: np.repeat(normal[:, :1], N_COLUMNS, axis=1),
        "constant groups": lambda: each_group(rng.standard_normal(groups)),
        "zero": lambda: 0 * abs(normal),
        "negative zero": lambda: -0.0 * abs(normal),
        "denormal": lambda: normal * 1e-41,
        "tiny": lambda: normal * 10 ** rng.uniform(-38, -5, (N_ROWS, 1)),
        "huge": lambda: normal * 10 ** rng.uniform(5, 38, (N_ROWS, 1)),
        "mixed": lambda: normal * 10 ** rng.uniform(-12, 6, normal.shape),
        "mixed groups": lambda: normal * each_group(10 ** rng.uniform(-9, 6, groups)),
        "positive": lambda: abs(normal) + 1,
        "negative": lambda: -abs(normal) - 100,
        "narrow": lambda: 1000 + normal * 1e-4,
        "narrow negative": lambda: -1000 + normal * 1e-4,
        "integers": lambda: rng.integers(-8, 8, normal.shape),
        "ties": lambda: rng.choice([-1, -0.5, 0, 0.5, 1], normal.shape),
        "sparse": lambda: normal * (rng.random(normal.shape) < 0.03),
        "one weight": lambda: np.eye(N_COLUMNS)[:N_ROWS] * normal[:, :1],
    }[kind]()
    return weights.clip(-3.4e38, 3.4e38).astype(np.float32)


KINDS = [
    "normal",
    "uniform",
    "heavy-tailed",
    "constant",
    "constant groups",
    "zero",
    "negative zero",
    "denormal",
    "tiny",
    "huge",
    "mixed",
    "mixed groups",
    "positive",
    "negative",
    "narrow",
    "narrow negative",
    "integers",
    "ties",
    "sparse",
    "one weight",
]


@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_ggml_s_byte_for_byte(kind, qtype):
    weights = rows(kind)
    assert np.array_equal(encode(torch.from_numpy(weights), block_type(qtype)).numpy(), by_ggml(weights, qtype))


@pytest.mark.parametrize("qtype", TYPES)
def test_one_block_alone_is_encoded_as_among_others(qtype):
    weights, layout = rows("heavy-tailed"), block_type(qtype)
    alone = encode(torch.from_numpy(weights[:1, : layout.block_size]), layout)
    assert np.array_equal(alone.numpy(), by_ggml(weights[:1, : layout.block_size].copy(), qtype))


def test_every_type_that_is_offered_is_tested():
    assert sorted(encodable_types()) == sorted(TYPES)


def test_threads_and_half_precision_change_nothing():
    weights, layout = torch.from_numpy(np.tile(rows("normal"), (20, 1))).bfloat16(), block_type("Q4_0")
    before = torch.get_num_threads()
    with workers() as pool:
        packed = encode(weights, layout, pool)
    assert torch.get_num_threads() == before
    assert np.array_equal(packed.numpy(), by_ggml(weights.float().numpy(), "Q4_0"))


def test_a_row_that_is_not_whole_blocks_is_refused():
    with pytest.raises(ValueError, match="Q4_K needs a multiple of 256 columns, got 128"):
        encode(torch.zeros(2, 128), block_type("Q4_K"))


@pytest.mark.gpu
@pytest.mark.parametrize("qtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_card_gives_the_same_blocks(kind, qtype):
    weights = torch.from_numpy(rows(kind))
    layout = block_type(qtype)
    assert torch.equal(encode(weights.cuda(), layout).cpu(), encode(weights, layout))
