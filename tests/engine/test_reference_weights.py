"""Weights of reference tokens against torch's own attention with a mask, and against keys that count several times."""

import pytest
import torch
import torch.nn.functional as F
from kontextkit.engine.attention.weighted import attend_in_runs
from kontextkit.engine.references.weights import arrange, bias, full_runs


@pytest.fixture
def qkv():
    torch.manual_seed(0)
    return torch.randn(2, 3, 20, 16), torch.randn(2, 3, 44, 16), torch.randn(2, 3, 44, 16)


RUNS = ((30, 1.0), (9, 0.6), (5, 0.05))


def test_attention_in_runs_is_attention_with_a_bias(qkv):
    q, k, v = qkv
    right = F.scaled_dot_product_attention(q, k, v, attn_mask=bias(RUNS, q))
    ours = attend_in_runs(q, k, v, RUNS, ["flash"])
    torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


def test_a_key_of_half_the_weight_counts_half_as_much(qkv):
    q, k, v = qkv
    runs = ((39, 1.0), (5, 0.5))
    twice = [torch.cat((x[:, :, :39], x), dim=2) for x in (k, v)]
    right = F.scaled_dot_product_attention(q, *twice)
    torch.testing.assert_close(attend_in_runs(q, k, v, runs, ["flash"]), right, rtol=1e-5, atol=1e-6)


def test_where_no_kernel_runs_it_says_so(qkv):
    assert attend_in_runs(*qkv, RUNS, ["cudnn"]) is None


def test_tokens_are_put_in_order_of_falling_weight_and_those_of_weight_0_left_out():
    found = arrange((2, 3, 2), ((0.5,), (1.0, 0.0, 0.25), ()))
    assert found.order.tolist() == [2, 5, 6, 0, 1, 4]
    assert found.runs == ((3, 1.0), (2, 0.5), (1, 0.25))
    assert full_runs(found.runs, 10) == ((7, 1.0), (2, 0.5), (1, 0.25))
    assert full_runs(((2, 0.5),), 5) == ((3, 1.0), (2, 0.5))


def test_weights_of_1_change_nothing():
    assert arrange((2, 3), ((1.0,), (1.0, 1.0, 1.0))) is None
    assert arrange((), ()) is None


def test_weights_of_another_size_are_refused():
    with pytest.raises(ValueError, match="reference 2 has 3 tokens and weights for 2"):
        arrange((2, 3), ((), (0.5, 0.5)))
