"""Attention in FP8 against torch's in float32 over the same numbers; off a card its emulation."""

import sys

import pytest
import torch
import torch.nn.functional as F
from kontextkit.engine.attention import fp8
from kontextkit.engine.attention.fp8 import attend, why_not
from kontextkit.engine.quant.fp8 import E4M3
from loras import error

CARD = torch.device("cuda", 0)
SHAPES = {"alike": (1, 2, 40, 40, 64), "batch": (2, 3, 70, 150, 128), "few queries": (1, 24, 3, 200, 128)}
OFF = 0.06  # three bits of mantissa in the shares and again in the result


def qkv(batch, heads, n_queries, n_keys, dim, device="cpu"):
    """A token's heads together in memory, as the blocks have them; some keys count much, as in a trained model."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, length, heads, dim, generator=generator) for length in (n_queries, n_keys, n_keys)]
    made[0] *= 3
    return [each.to(device).to(E4M3).transpose(1, 2) for each in made]


def exact(q, k, v):
    return F.scaled_dot_product_attention(q.float(), k.float(), v.float())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_attends_as_torch_does_but_for_eight_bits(shape):
    q, k, v = qkv(*SHAPES[shape])
    ours = attend(q, k, v)
    assert ours.dtype == E4M3
    assert ours.transpose(1, 2).is_contiguous()
    assert 0.001 < error(ours.float(), exact(q, k, v)) < OFF


def test_what_all_queries_look_at_comes_back_whole():
    q, k, v = (each.float() for each in qkv(1, 2, 40, 300, 64))
    k[:, :, 7] = 20 * q.mean(dim=2).sign()
    q = q.abs() * k[:, :, 7:8].sign()
    q, k, v = (each.to(E4M3) for each in (q, k, v))
    assert torch.equal(attend(q, k, v).float(), v[:, :, 7:8].float().expand(-1, -1, 40, -1))


def test_a_thousand_keys_that_count_little_are_not_lost():
    q = torch.ones(1, 1, 1, 64).to(E4M3)
    k, v = torch.zeros(1, 1, 4097, 64), torch.full((1, 1, 4097, 64), 2.0)
    k[:, :, 0], v[:, :, 0] = 1.0, 0.0  # weighs as much as 2981 of the others
    ours = attend(q, k.to(E4M3), v.to(E4M3)).float()
    assert error(ours, exact(q, k, v)) < OFF


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [*SHAPES.values(), (1, 24, 1537, 2561, 128)])
def test_a_card_gives_the_emulation_s_numbers(shape):
    if reason := why_not(CARD):
        pytest.skip(reason)
    q, k, v = qkv(*shape, device="cuda")
    ours = attend(q, k, v)
    assert ours.transpose(1, 2).is_contiguous()
    assert error(ours.cpu().float(), attend(q.cpu(), k.cpu(), v.cpu()).float()) < 0.03
    graph, again = torch.cuda.CUDAGraph(), [each.clone() for each in (q, k, v)]
    with torch.cuda.graph(graph):
        recorded = attend(*again)
    graph.replay()
    assert torch.equal(recorded.float(), ours.float())


def test_where_it_cannot_be_a_sentence_says_so(monkeypatch):
    assert why_not(torch.device("cpu")) == "in FP8 it needs an NVIDIA card"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    ada, hopper, other = (torch.device("cuda", index) for index in (5, 6, 7))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9) if device == ada else (9, 0))
    expected = "in FP8 it needs a Hopper or data-centre Blackwell card, this one is of capability 8.9"
    assert why_not(ada) == expected
    monkeypatch.setattr(fp8, "find_spec", lambda name: None)
    assert why_not(hopper) == (
        "in FP8 it needs a Python package, `pip install --no-deps nvidia-cudnn-frontend` brings it"
    )
    monkeypatch.setattr(fp8, "find_spec", lambda name: object())

    def fail(*args, **more):
        raise OSError("libcudnn.so.9: cannot open shared object file\nmore")

    monkeypatch.setattr(torch, "linspace", fail)  # the first thing that is done on the card
    words = "nvidia-cudnn-frontend cannot attend in FP8 here (libcudnn.so.9: cannot open shared object file)"
    assert why_not(other) == words
    why_not.cache_clear()
    assert "cudnn" not in sys.modules
