"""Every way to attend against torch's own, and what the ways that are not here say."""

import pytest
import torch
import torch.nn.functional as F
from kontextkit.engine.attention.backends import BACKENDS, EXACT, _seconds, fastest, sliced, why_not
from torch.profiler import ProfilerActivity, profile

CPU, CARD = torch.device("cpu"), torch.device("cuda")
SHAPES = {"alike": (1, 2, 40, 40, 64), "batch": (3, 2, 33, 33, 128), "more keys": (2, 3, 17, 50, 64)}
MISSING = {
    "cudnn": "cudnn attention needs an NVIDIA card",
    "efficient": "efficient attention needs an NVIDIA card",
    "flash3": "flash3 attention needs the Python package flash_attn_interface",
    "sage": "sage attention needs the Python package sageattention",
}


def qkv(batch, heads, n_queries, n_keys, dim, **more):
    generator = torch.Generator().manual_seed(0)
    lengths = (n_queries, n_keys, n_keys)
    return [torch.randn(batch, heads, length, dim, generator=generator).to(**more) for length in lengths]


def error(ours, expected):
    return ((ours - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name in BACKENDS if not why_not(name, CPU)])
def test_a_backend_attends_as_torch_does(name, shape):
    q, k, v = qkv(*SHAPES[shape])
    assert error(BACKENDS[name](q, k, v), F.scaled_dot_product_attention(q, k, v)) < 1e-6


@pytest.mark.parametrize("n_rows", [0, 1, 7, 8, 39, 40, 1000])
def test_slices_of_any_size_join_to_the_whole(n_rows):
    q, k, v = qkv(*SHAPES["alike"])
    row = 3 * 2 * 40 * 4  # scores of a query in two heads, thrice
    assert error(sliced(q, k, v, n_rows * row), F.scaled_dot_product_attention(q, k, v)) < 1e-6


def test_slices_keep_a_type_and_take_tensors_that_are_not_contiguous():
    q, k, v = qkv(*SHAPES["batch"], dtype=torch.bfloat16)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    ours = sliced(*turned, 20_000)
    assert ours.dtype == torch.bfloat16
    assert error(ours.float(), F.scaled_dot_product_attention(*(x.float() for x in (q, k, v)))) < 0.01


def most_bytes(function, *arguments):
    """The most memory that a call held at once on the CPU, beside what it was given."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        function(*arguments)
    changes = sorted(
        (e.start_ns(), e.nbytes()) for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"
    )
    held = most = 0
    for _, n_bytes in changes:
        held += n_bytes
        most = max(most, held)
    return most


def test_slices_hold_no_more_scores_than_they_may():
    q, k, v = qkv(1, 4, 500, 500, 16)
    scores, kept = 4 * 500 * 500 * 4, 2 * q.nbytes  # kept: the scaled keys and the result
    assert most_bytes(lambda: (q @ k.transpose(2, 3)).softmax(dim=-1) @ v) >= 2 * scores
    for n_bytes in (scores // 4, scores // 20):
        assert n_bytes / 2 < most_bytes(sliced, q, k, v, n_bytes) - kept <= n_bytes


def test_what_cannot_run_here_says_what_it_needs():
    assert {name: why_not(name, CPU) for name in BACKENDS if why_not(name, CPU)} == MISSING
    for name in ("cudnn", "efficient"):
        assert why_not(name, CARD) == ""


def test_a_package_that_is_there_still_needs_a_card(monkeypatch):
    monkeypatch.setattr("kontextkit.engine.attention.backends.find_spec", lambda name: object())
    for name in ("flash3", "sage"):
        assert why_not(name, CPU) == f"{name} attention needs an NVIDIA card"
        assert why_not(name, CARD) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_fastest_gives_torch_s_numbers(dtype):
    q, k, v = qkv(1, 4, 1500, 1500, 128, device="cuda", dtype=dtype)
    name = fastest(q, k, v)
    assert name in EXACT
    assert (
        error(BACKENDS[name](q, k, v).float(), F.scaled_dot_product_attention(*(x.float() for x in (q, k, v)))) < 0.01
    )


@pytest.mark.gpu
def test_the_fastest_is_looked_for_once_for_alike_tensors(monkeypatch):
    from kontextkit.engine.attention import backends

    asked = []
    monkeypatch.setattr(backends, "_fastest", {})
    monkeypatch.setattr(backends, "_seconds", lambda name, *qkv: asked.append(name) or _seconds(name, *qkv))
    for length in (1100, 2000, 1100):
        fastest(*qkv(1, 4, length, length, 128, device="cuda", dtype=torch.bfloat16))
    assert asked == list(EXACT)


@pytest.mark.gpu
def test_a_backend_without_a_kernel_for_such_tensors_is_passed_over():
    q, k, v = qkv(1, 4, 300, 300, 128, device="cuda")  # float32: the memory-efficient one alone has it
    assert fastest(q, k, v) == "efficient"
    assert _seconds("flash", q, k, v) is None
