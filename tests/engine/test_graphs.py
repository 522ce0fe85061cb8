"""A recorded pass gives the numbers of one that runs as it is, and is recorded only where that pays."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from kontextkit.engine.flux.graphs import Pass, PassGraphs
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.flux.loop import predict_velocity
from loras import random

pytest.importorskip("triton")
from kontextkit.engine.flux.fused import PARTS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize(
    ("done", "card_ms", "host_bound"),
    [(True, 10.0, True), (True, 11.0, True), (True, 20.0, False), (False, 10.0, False)],
)
def test_the_card_waited_for_the_host_where_it_was_done_as_soon_as_it_was_asked(done, card_ms, host_bound):
    begin, end = SimpleNamespace(elapsed_time=lambda end: card_ms), SimpleNamespace(query=lambda: done)
    assert Pass(0.010, begin, end).is_host_bound() is host_bound


class Plain:
    """In place of PassGraphs: records nothing."""

    def run(self, key, stream, work):
        work(stream)


class Graphed(BlockHooks):
    def __init__(self, graphs, parts=None):
        self.graphs, self.parts = graphs, parts or self.parts
        self.rotates = parts is not None

    def rest(self, stream, run):
        self.graphs.run(stream.img.shape, stream, run)


def velocity(model, hooks=None, sigma=0.6):
    call = {"img": random(1, 12, 64, seed=1), "txt": random(1, 5, 96, seed=3), "pooled": random(1, 64, seed=4)}
    call |= {"img_ids": random(1, 12, 3, seed=2).round().abs(), "txt_ids": torch.zeros(1, 5, 3)}
    call |= {"timestep": torch.tensor([sigma]), "guidance": torch.tensor([2.5])}
    with torch.inference_mode():
        return predict_velocity(model, **{key: x.to(DEVICE) for key, x in call.items()}, n_target=12, hooks=hooks)


@pytest.fixture
def always_pays(monkeypatch):
    monkeypatch.setattr(Pass, "is_host_bound", lambda self: True)


@pytest.mark.gpu
@pytest.mark.parametrize("qtype", ["F32", "Q8_0"])
@pytest.mark.parametrize("parts", ["plain", "fused"])
def test_replayed_passes_are_the_same_numbers(build, qtype, parts, always_pays):
    model = build(qtype).to(DEVICE)
    graphs, parts = PassGraphs(model), PARTS if parts == "fused" else None
    for turn, sigma in enumerate((0.9, 0.8, 0.7, 0.6, 0.5)):
        expected = velocity(model, Graphed(Plain(), parts), sigma)
        assert torch.equal(velocity(model, Graphed(graphs, parts), sigma), expected)
        assert graphs.failed == ""
        assert graphs.n_replayed == max(0, turn - 1)
    graphs.clear()
    assert not graphs.recorded


@pytest.mark.gpu
@pytest.mark.skipif("TRIED_BY" in os.environ, reason="it is what is run below")
def test_all_this_holds_with_the_allocator_that_comfyui_chooses():
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync", "TRIED_BY": "test_graphs"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout


@pytest.mark.gpu
def test_a_pass_that_keeps_the_card_busy_is_not_recorded(build, monkeypatch):
    model = build("F32").to(DEVICE)
    graphs = PassGraphs(model)
    monkeypatch.setattr(Pass, "is_host_bound", lambda self: False)
    for _ in range(4):
        velocity(model, Graphed(graphs))
    assert graphs.n_replayed == 0


@pytest.mark.gpu
def test_after_a_weight_moved_passes_run_as_they_are(build, always_pays):
    model = build("F32").to(DEVICE)
    graphs = PassGraphs(model)
    for _ in range(3):
        velocity(model, Graphed(graphs))
    linear = model.single_transformer_blocks[0].proj_out
    linear.weight = torch.nn.Parameter(linear.weight * 1.5, requires_grad=False)
    assert torch.equal(velocity(model, Graphed(graphs)), velocity(model))
    assert graphs.n_replayed == 1


@pytest.mark.gpu
def test_where_recording_fails_passes_run_as_they_are(build, always_pays):
    class Waits(Graphed):
        def around(self, place, run, stream):
            torch.cuda.synchronize()
            return run(stream)

    model = build("F32").to(DEVICE)
    graphs, expected = PassGraphs(model), velocity(model)
    for _ in range(4):
        assert torch.equal(velocity(model, Waits(graphs)), expected)
    assert graphs.failed
    assert graphs.n_replayed == 0
    assert torch.equal(velocity(model), expected)


@pytest.mark.gpu
def test_a_weight_on_the_host_is_not_recorded(build, always_pays):
    model = build("F32").to(DEVICE)
    graphs = PassGraphs(torch.nn.ModuleList([model, torch.nn.Linear(2, 2)]))
    for _ in range(4):
        velocity(model, Graphed(graphs))
    assert graphs.failed == "not all weights are on the card"
