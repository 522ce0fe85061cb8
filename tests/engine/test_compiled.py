"""Compiled blocks: eager's numbers, no graph for what can be spared one, and eager's own work where compiling fails."""

import sys

import pytest
import torch
from kontextkit.engine.cache.calibration import THRESHOLDS, find_threshold
from kontextkit.engine.flux import compiled
from kontextkit.engine.flux.blocks import Parts
from kontextkit.engine.flux.compiled import CompileFailed, compiled_parts, explain, n_graphs, recompiles_allowed
from kontextkit.engine.flux.hooks import BlockHooks
from kontextkit.engine.flux.loop import predict_velocity
from kontextkit.engine.tiers.presets import AUTO, COMPILE_MODES
from loras import error, random
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException
from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler, TritonMissing

N_PIECES = 4
CALLS = {  # target, reference and text tokens
    "first": (12, 0, 5),
    "another size": (30, 0, 5),
    "another prompt": (12, 0, 9),
    "references": (12, 20, 5),
    "as many of both": (16, 0, 16),
    "as many as channels": (100, 28, 128),
}


@pytest.fixture(autouse=True)
def as_in_a_running_prompt():
    with torch.inference_mode(), recompiles_allowed():
        yield


def velocity(model, name="first", hooks=None, batch=1):
    n_target, n_references, n_txt = CALLS[name]
    n_img = n_target + n_references
    return predict_velocity(
        model,
        img=random(batch, n_img, 64, seed=1),
        img_ids=random(batch, n_img, 3, seed=2).round().abs(),
        txt=random(batch, n_txt, 96, seed=3),
        txt_ids=torch.zeros(batch, n_txt, 3),
        timestep=torch.linspace(0.6, 0.7, batch),
        pooled=random(batch, 64, seed=4),
        guidance=torch.tensor([2.5]),
        n_target=n_target,
        hooks=hooks,
    )


class Compiled(BlockHooks):
    rotates = True

    def __init__(self, failed=None):
        self.parts = compiled_parts("default", failed)


def new_graphs(model, *calls, **more):
    """How many it takes for these calls, which must agree with eager."""
    before = n_graphs()
    for name in calls:
        assert error(velocity(model, name, Compiled(), **more), velocity(model, name, **more)) < 1e-5
    return n_graphs() - before


@pytest.fixture
def without_inductor(monkeypatch):
    """Graphs are found as ever and run as they are, which spares the C++ compiler's time."""
    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, inputs, **_: aot_eager(graph, inputs))
    yield
    torch._dynamo.reset()


def check_graphs(build, qtype, **more):
    model = build(qtype)
    assert new_graphs(model, "first", **more) == N_PIECES
    assert new_graphs(model, *CALLS, **more) == 0
    assert new_graphs(build(qtype), "references", **more) == 0


def test_sizes_prompts_and_references_take_one_graph_a_piece_together(build):
    torch._dynamo.reset()
    check_graphs(build, "Q8_0")


def test_so_do_those_of_a_batch(build, without_inductor):
    check_graphs(build, "F32", batch=2)


# where compiling fails


@pytest.fixture
def broken(monkeypatch):
    """From now on Inductor fails with what this is given."""

    def fail_with(problem):
        def fail(*args, **more):
            raise problem

        torch._dynamo.reset()
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)

    yield fail_with
    torch._dynamo.reset()


def test_eager_goes_on_where_inductor_fails(build, broken):
    model, failed = build("F32"), CompileFailed()
    broken(RuntimeError("the moon is in the way"))
    assert torch.equal(velocity(model, hooks=Compiled(failed)), velocity(model))
    assert failed.reason == "torch.compile failed (RuntimeError: the moon is in the way)"
    with pytest.raises(TorchDynamoException, match="the moon is in the way"):
        velocity(model, hooks=Compiled())


def test_running_out_of_memory_in_the_compiler_is_told_as_such(build, broken):
    model, failed = build("F32"), CompileFailed()
    for problem in (torch.OutOfMemoryError("full"), InductorError(torch.OutOfMemoryError("full"), None)):
        broken(problem)
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            velocity(model, hooks=Compiled(failed))
        assert failed.reason == ""


def test_eager_goes_on_where_there_are_too_many_kinds_of_blocks(build, without_inductor):
    model, failed = build("F32"), CompileFailed()
    velocity(model, hooks=Compiled(failed))
    with torch._dynamo.config.patch(recompile_limit=1):
        two = velocity(model, hooks=Compiled(failed), batch=2)
    assert torch.equal(two, velocity(model, batch=2))
    assert failed.reason == "more than 64 kinds of blocks were met; restart ComfyUI"


def limit_hit():
    """As Dynamo raises it."""
    problem = FailOnRecompileLimitHit("Hard failure due to fullgraph=True")
    problem.__cause__ = TorchDynamoException("exceeding the recompile_limit cache size limit (currently set to 64)")
    return problem


COMPILER_ERRORS = {
    "triton": (TritonMissing(None), "Triton is missing; `pip install triton` into ComfyUI's Python brings it"),
    "c++": (
        InductorError(InvalidCxxCompiler(), None),
        "there is no C++ compiler; install one (g++, or on Windows the Visual Studio Build Tools)",
    ),
    "c": (
        InductorError(RuntimeError("Failed to find C compiler. Please specify via CC environment variable."), None),
        "there is no C++ compiler; install one (g++, or on Windows the Visual Studio Build Tools)",
    ),
    "limit": (limit_hit(), "more than 64 kinds of blocks were met; restart ComfyUI"),
    "g++": (CppCompileError(["g++", "a.cpp"], b"a.cpp:1: no"), "torch.compile failed (C++ compile error)"),
    "other": (TorchDynamoException("\n  graph break\n more"), "torch.compile failed (graph break)"),
    "long": (TorchDynamoException("x" * 999), f"torch.compile failed ({'x' * 200})"),
    "silent": (TorchDynamoException(), "torch.compile failed (TorchDynamoException)"),
}


@pytest.mark.parametrize("name", COMPILER_ERRORS)
def test_a_compiler_s_failure_is_one_sentence_and_is_met_once(name):
    problem, sentence = COMPILER_ERRORS[name]
    calls, failed = [], CompileFailed()

    def piece(x):
        calls.append(x)
        raise problem

    guarded, other = failed.guard(piece, lambda x: -x), failed.guard(piece, lambda x: x + 1)
    assert (guarded(1), guarded(2), other(3)) == (-1, -2, 4)
    assert calls == [1]
    assert failed.reason == sentence


@pytest.mark.parametrize("problem", [torch.OutOfMemoryError("full"), ValueError("no"), KeyboardInterrupt()])
def test_what_is_no_failure_of_the_compiler_passes_as_it_is(problem):
    def piece():
        raise problem

    failed = CompileFailed()
    with pytest.raises(type(problem)) as caught:
        failed.guard(piece, lambda: None)()
    assert caught.value is problem
    assert failed.reason == ""


def test_on_windows_triton_has_another_name(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "`pip install triton-windows`" in explain(TritonMissing(None))


def test_without_a_compiler_on_the_machine_the_blocks_run_as_they_are(build):
    """Inductor takes the compiler's name from $CXX when it is imported."""
    model, failed = build("F32"), CompileFailed()
    torch._dynamo.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        ours = velocity(model, hooks=Compiled(failed))
    assert torch.equal(ours, velocity(model))
    assert failed.reason.startswith("there is no C++ compiler; install one")


# modes and limits


def test_every_mode_that_the_node_offers_has_options_that_inductor_knows():
    assert {AUTO, "off", "fused", *compiled.MODES} == set(COMPILE_MODES)
    for mode in compiled.MODES:
        assert compiled_parts(mode) != Parts()


def test_dynamo_s_limit_is_raised_for_a_run_alone():
    limit = torch._dynamo.config.recompile_limit
    with recompiles_allowed():
        assert torch._dynamo.config.recompile_limit == compiled.RECOMPILE_LIMIT
    assert torch._dynamo.config.recompile_limit == limit


# the threshold that is found


@pytest.mark.parametrize("n_good", range(len(THRESHOLDS) + 1))
def test_the_largest_threshold_that_is_alike_enough_is_found_in_a_few_trials(n_good):
    asked = []

    def likeness(threshold):
        asked.append(threshold)
        return 0.99 - threshold / 100 if threshold in THRESHOLDS[:n_good] else 0.9

    found = find_threshold(likeness, 0.95)
    best = THRESHOLDS[n_good - 1] if n_good else 0.0
    assert found == (best, 0.99 - best / 100 if n_good else 1.0)
    assert len(asked) == len(set(asked)) <= 4


def test_a_likeness_that_is_no_number_is_not_alike():
    assert find_threshold(lambda threshold: float("nan"), 0.9) == (0.0, 1.0)
