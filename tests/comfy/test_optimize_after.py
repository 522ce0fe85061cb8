"""What a run under Optimize Kontext leaves behind: nothing, however it ended."""

import gc
import weakref

import pytest
import torch
from kontextkit.engine.cache.first_block import FirstBlockSettings
from kontextkit.engine.tiers.presets import Choices
from optimized import SKIPS, optimized, patched
from oracle import DEVICE, conditioning, inputs, k_sampler, latent, normal

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture
def runs(model, monkeypatch):
    """Weak references to the runs and caches of a test."""
    from kontextkit.bridge import optimize, run

    made = []

    def keep(kind):
        def make(*arguments):
            one = kind(*arguments)
            made.append(weakref.ref(one))
            return one

        return make

    monkeypatch.setattr(optimize, "SamplingRun", keep(run.SamplingRun))
    monkeypatch.setattr(run, "FirstBlockCache", keep(run.FirstBlockCache))
    return made


def sample(model, **more):
    return k_sampler(model, **{"steps": 6, "cfg": 2.0} | more)


def interrupt():
    import comfy.model_management as management

    management.interrupt_current_processing(True)


def fail():
    raise RuntimeError("a patch failed")


def run_out():
    raise torch.OutOfMemoryError("full")


def broken_off(model, problem, at=5):
    """A run that ends within its pass number `at`, from 0; the name of what ended it."""
    passes = []

    def stop():
        passes.append(1)
        if len(passes) > at:
            problem()

    try:
        sample(patched(model, stop))
    except BaseException as error:  # an interruption is no Exception
        return type(error).__name__
    return ""


OTHERS = {
    "another seed": lambda model: sample(model, seed=4),
    "another size": lambda model: sample(model, start={"samples": normal(1, 16, 12, 20, seed=8)}),
    "a batch": lambda model: sample(model, start=latent(batch=2)),
    "no references": lambda model: sample(model, positive=conditioning(1)),
    "other references": lambda model: sample(model, positive=conditioning(1, references=[(8, 8)])),
    "fewer steps": lambda model: sample(model, steps=3),
    "another sampler": lambda model: sample(model, sampler_name="heun"),
    "an interruption": lambda model: broken_off(model, interrupt),
    "an error": lambda model: broken_off(model, fail),
    "a full card": lambda model: broken_off(model, run_out),
}


@pytest.fixture(scope="module")
def ours(model):
    return optimized(model, SKIPS, attention="sliced")


@pytest.fixture(scope="module")
def expected(ours):
    with torch.inference_mode():
        return sample(ours)


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_is_the_same_after_any_other(ours, expected, other, runs):
    OTHERS[other](ours)
    assert torch.equal(sample(ours), expected)
    gc.collect()
    assert len(runs) > 4
    assert not any(run() for run in runs)


@pytest.mark.parametrize(
    ("problem", "name"),
    [(interrupt, "InterruptProcessingException"), (fail, "RuntimeError"), (run_out, "OutOfMemoryError")],
)
def test_what_ends_a_run_comes_out_as_it_is_and_keeps_nothing_alive(ours, problem, name, runs, said):
    for at in (0, 5):
        assert broken_off(ours, problem, at) == name
    assert said.texts == []
    gc.collect()
    assert runs
    assert not any(run() for run in runs)


def test_no_option_of_a_run_is_left_on_the_model(ours):
    from kontextkit.bridge.run import KEY, OVERRIDE

    for end in (sample, lambda model: broken_off(model, fail)):
        end(ours)
        assert not {KEY, OVERRIDE} & ours.model_options["transformer_options"].keys()


def test_dynamo_s_limit_is_as_before_after_a_run_that_failed(ours):
    limit = torch._dynamo.config.recompile_limit
    broken_off(ours, fail)
    assert torch._dynamo.config.recompile_limit == limit


def test_a_run_s_own_caches_go_with_its_last_step_even_where_it_is_held(model, monkeypatch):
    from kontextkit.bridge import optimize, run

    held = []
    monkeypatch.setattr(optimize, "SamplingRun", lambda *a: held.append(run.SamplingRun(*a)) or held[-1])
    sample(optimized(model, SKIPS))
    broken_off(optimized(model, SKIPS), fail)
    assert [each.caches for each in held] == [{}, {}]


def test_a_skipped_pass_asks_dynamic_vram_for_its_first_block_alone(model, monkeypatch):
    """Through ComfyUI's queue, which a card alone makes."""
    from kontextkit.bridge import prefetch
    from kontextkit.bridge.run import KEY, SamplingRun

    queue, asked = [], []

    def make(blocks, device, options):
        queue[:] = [None, *blocks, None]
        return queue

    def pop(queue, device, module):
        queue.pop(0)
        asked.append(queue[0] and queue[0].block)

    monkeypatch.setattr(prefetch, "make_prefetch_queue", make)
    monkeypatch.setattr(prefetch, "prefetch_queue_pop", pop)
    hosted = model.model.diffusion_model.to(DEVICE)
    blocks = [*hosted.transformer.transformer_blocks, *hosted.transformer.single_transformer_blocks]
    run = SamplingRun(Choices(FirstBlockSettings(computed={0})), [1.0, 0.5, 0.0], torch.device(DEVICE))
    for run.step, expected in enumerate([[*blocks, None], [blocks[0], None]]):
        hosted(**inputs(), transformer_options={KEY: run})
        run.n_evaluations.clear()
        assert asked == expected
        assert queue == [None]
        asked.clear()
