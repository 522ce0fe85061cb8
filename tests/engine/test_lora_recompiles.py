"""What torch.compile does when LoRAs change: nothing, where it can be helped."""

import pytest
import torch
from kontextkit.engine.flux.blocks import Parts
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.lora.adapters import LowRank
from kontextkit.engine.lora.branch import attached
from kontextkit.engine.lora.stack import LoraStack
from loras import CPU, error, linears, low_rank, random, velocity


class Counting(BlockHooks):
    """Compiles blocks with a backend that counts graphs and runs them as they are."""

    rotates = True

    def __init__(self):
        self.n_graphs = 0
        torch._dynamo.reset()
        pieces = {name: torch.compile(piece, backend=self.count, dynamic=True) for name, piece in vars(Parts()).items()}
        self.parts = Parts(**pieces)

    def count(self, graph, inputs):
        self.n_graphs += 1
        return graph.forward


@pytest.fixture
def compiled(build):
    """(model, run): run(loras, strengths) -> the number of graphs it took to compile, which must agree with eager."""
    model = build("F32")
    hooks = Counting()

    def run(loras, strengths):
        before = hooks.n_graphs
        stack = LoraStack(loras, torch.float32)
        with attached(model, stack.branches(model, strengths, CPU, torch.float32)):
            expected = velocity(model)
            assert error(velocity(model, hooks), expected) < 1e-5
        return hooks.n_graphs - before

    yield model, run
    torch._dynamo.reset()


def lora(model, rank, seed, names=""):
    return {name: low_rank(layer, rank, seed) for name, layer in linears(model).items() if names in name}


def test_strengths_and_loras_change_without_a_new_graph(compiled):
    model, run = compiled
    assert run([], []) > 0
    first = run([lora(model, 16, seed=1)], [1.0])
    assert first > 0
    for loras, strengths in [
        ([lora(model, 16, seed=1)], [0.3]),
        ([lora(model, 16, seed=2)], [1.0]),
        ([lora(model, 5, seed=3)], [-2.0]),
        ([lora(model, 8, seed=4), lora(model, 8, seed=5)], [0.5, 0.6]),
        ([lora(model, 3, seed=4), lora(model, 4, seed=5), lora(model, 5, seed=6)], [0.5, 0.6, 0.7]),
        ([], []),
        ([lora(model, 16, seed=7)], [1.0]),
    ]:
        assert run(loras, strengths) == 0


def test_another_size_of_ranks_takes_a_graph_for_each_piece_of_a_block_once(compiled):
    model, run = compiled
    run([lora(model, 16, seed=1)], [1.0])
    assert run([lora(model, 32, seed=1)], [1.0]) <= 4
    assert run([lora(model, 16, seed=2), lora(model, 16, seed=3)], [1.0, 1.0]) == 0
    assert run([lora(model, 16, seed=1)], [1.0]) == 0


def test_a_compiled_block_adds_onto_the_product_in_place():
    """Inductor's own addmm would first copy what it adds to."""
    from kontextkit.engine.quant import PackedTensor, QuantLinear
    from torch._inductor.utils import run_and_get_code

    layer = QuantLinear(PackedTensor(random(48, 64, seed=1), "F32", (48, 64)))
    adapter = LowRank(random(16, 64, seed=2), random(48, 16, seed=3), 1.0)
    model, x = torch.nn.Sequential(layer), random(5, 64, seed=4)
    stack = LoraStack([{"0": adapter}], torch.float32)
    with torch.no_grad(), attached(model, stack.branches(model, [1.0], CPU, torch.float32)):
        result, (code,) = run_and_get_code(torch.compile(model, fullgraph=True), x)
        assert error(result, x @ (layer.weight + adapter.delta()).T) < 1e-5
    assert "kontextkit.add_product_" in code
    assert "clone" not in code
    assert "copy" not in code.partition("def call")[2]
