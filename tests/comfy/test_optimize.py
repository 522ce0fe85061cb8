"""Optimize Kontext in ComfyUI's own sampling: what it changes, what it leaves, what it says."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hosted_loras import with_lora
from kontextkit.engine.tiers.presets import PRESETS
from optimized import SKIPS, mapped, optimized
from oracle import conditioning, error, k_sampler, latent

STEPS = 6
PLAIN = conditioning(1)  # without references, so that it runs in one batch with the negative

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


def sample(model, **more):
    return k_sampler(model, **{"steps": STEPS} | more)


def state(model):
    """All that a node may have put on a MODEL."""

    def copied(part):
        if isinstance(part, dict):
            return {key: copied(value) for key, value in part.items()}
        return [copied(value) for value in part] if isinstance(part, list) else part

    parts = ("model_options", "wrappers", "attachments", "callbacks", "additional_models", "patches", "object_patches")
    return {name: copied(getattr(model, name)) for name in parts}


# what it changes


def test_off_and_threshold_zero_change_no_bit(model, optimize_node, said):
    expected = sample(model)
    assert torch.equal(sample(optimize_node.execute(model, "off").result[0]), expected)
    assert said.texts == []
    custom = optimize_node.execute(model, "custom", threshold=0.0, compile="off", attention="comfyui").result[0]
    assert torch.equal(sample(custom), expected)
    assert said.passes() == (STEPS, 0)


def test_a_map_that_computes_every_step_changes_no_bit(model):
    for cfg in (1.0, 2.0):
        assert torch.equal(sample(mapped(model, *range(STEPS)), cfg=cfg), sample(model, cfg=cfg))


def test_the_model_that_came_in_stays_as_it_was(model, optimize_node):
    before = state(model)
    expected = sample(model)
    for preset in (*PRESETS, "custom"):
        sample(optimize_node.execute(model, preset).result[0], steps=2)
    sample(optimized(model, SKIPS, attention="sliced"), steps=2)
    assert state(model) == before
    assert torch.equal(sample(model), expected)


def test_branches_of_a_graph_do_not_hear_of_each_other(model):
    branches = [model, optimized(model, SKIPS), mapped(model, 0, 3), mapped(model, 0, 2, 4, order=2)]
    pictures = [sample(each) for each in branches]
    assert all(error(x, y) > 1e-3 for i, x in enumerate(pictures) for y in pictures[:i])
    for i in (2, 0, 3, 1, 1, 3, 0, 2):
        assert torch.equal(sample(branches[i].clone()), pictures[i])


def test_a_second_one_takes_the_place_of_the_first(model, optimize_node, said):
    twice = optimized(mapped(model, 0, 3), SKIPS)
    assert torch.equal(sample(twice), sample(optimized(model, SKIPS)))
    said.texts.clear()
    assert torch.equal(sample(optimize_node.execute(twice, "off").result[0]), sample(model))
    assert said.texts == []


def test_skipping_spares_passes_and_keeps_the_picture_near(model, said):
    expected = sample(model)
    near = error(sample(optimized(model, SKIPS)), expected)
    computed, skipped = said.passes()
    assert computed + skipped == STEPS
    assert skipped > 0
    assert 0 < near < error(sample(mapped(model, 0)), expected)


def test_compiled_blocks_with_a_lora_paint_the_same_picture(model, lora_files, said):
    ours = with_lora(model, lora_files["a"])
    for more in ({}, {"cfg": 2.0, "seed": 4}):
        assert error(sample(optimized(ours, compile="default"), **more), sample(ours, **more)) < 1e-4
    assert said.texts[-1].endswith("Compiled: nothing recompiled.")


# other ways to sample


@pytest.mark.parametrize("computed", [(0,), (0, 2, 4)])
def test_positive_and_negative_keep_apart_run_together_or_one_by_one(model, said, computed, monkeypatch):
    """The one skips what the other does, for a map says so; what it is given instead must be its own."""
    together = sample(mapped(model, *computed), cfg=2.0, positive=PLAIN)
    assert said.passes() == (len(computed), STEPS - len(computed))
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    apart = sample(mapped(model, *computed), cfg=2.0, positive=PLAIN)
    assert said.passes() == (2 * len(computed), 2 * (STEPS - len(computed)))
    assert error(apart, together) < 1e-4


def test_conditions_of_other_shapes_skip_each_by_its_own_change(model, said):
    assert torch.isfinite(sample(optimized(model, SKIPS), cfg=2.0)).all()
    computed, skipped = said.passes()
    assert computed + skipped == 2 * STEPS
    assert skipped > 0


def test_a_prompt_that_takes_over_in_the_middle_begins_with_a_computed_step(model, said):
    halves = ((1, {"end_percent": 0.4}), (5, {"start_percent": 0.4}))
    positive = [part for seed, when in halves for part in conditioning(seed, **when)]
    picture = sample(mapped(model, 0), positive=positive)
    assert said.passes() == (2, STEPS - 2)
    assert error(picture, sample(mapped(model, 0))) > 1e-2


def test_each_picture_of_a_batch_is_given_its_own(model):
    alone, both = (sample(mapped(model, 0, 2), start=latent(batch), cfg=2.0) for batch in (1, 2))
    assert error(both[:1], alone) < 1e-4
    assert error(both[1:], alone) > 0.1


@pytest.mark.parametrize(
    ("sampler", "n_passes"),
    [("heun", 11), ("dpm_2", 11), ("seeds_3", 16), ("euler_cfg_pp", 12), ("uni_pc", 6), ("dpm_fast", 6)],
)
def test_samplers_of_several_passes_a_step_skip_too(model, said, sampler, n_passes):
    assert torch.isfinite(sample(optimized(model, replace(SKIPS, threshold=1.5)), sampler_name=sampler)).all()
    computed, skipped = said.passes()
    assert computed + skipped == n_passes
    assert skipped > 0


def test_a_sampler_of_more_steps_than_sigmas_skips_too(model, said):
    assert torch.isfinite(sample(optimized(model, SKIPS), sampler_name="dpm_adaptive")).all()
    computed, skipped = said.passes()
    assert computed > STEPS
    assert skipped > 0


def test_heun_s_two_passes_are_two_series(model, said, monkeypatch):
    """The sigma that a cache is told is the one of the pass, and no series meets one twice."""
    from kontextkit.bridge.run import SamplingRun

    told, ask = [], SamplingRun.cached

    def cached(run, options, *rest):
        found = ask(run, options, *rest)
        told.append((id(found), round(found.blocks.sigma, 4), round(options["sigmas"][0].item(), 4)))
        return found

    monkeypatch.setattr(SamplingRun, "cached", cached)
    sample(optimized(model, SKIPS), sampler_name="heun")
    assert len({series for series, *_ in told}) == 2
    assert len(set(told)) == len(told) == 11
    assert all(sigma == true for _, sigma, true in told)


# CUDA graphs


def test_passes_are_recorded_only_where_nothing_but_the_blocks_works_on_them(comfyui):
    from kontextkit.bridge.hooks import ComfyHooks
    from kontextkit.bridge.prefetch import Prefetch
    from kontextkit.bridge.run import KEY, OVERRIDE, SamplingRun
    from kontextkit.engine.flux.hooks import Stream

    cpu, x = torch.device("cpu"), torch.zeros(1, 2, 4)

    def recorded(choices=PRESETS["balanced"], control=None, mask=None, runs=(), kept_bytes=(0, 0, 0), **options):
        run, seen = SamplingRun(replace(choices, compile="off"), [1.0, 0.0], cpu), []
        run.graphs = SimpleNamespace(run=lambda key, stream, work: seen.append(key))
        options = {KEY: run, OVERRIDE: run.attend, **options}
        hooks = ComfyHooks(options, control, Prefetch([], cpu, {}), ("shapes",), kept_bytes, runs)
        plain = []
        hooks.rest(Stream(x, x, x, x, mask), plain.append)
        assert len(seen) + len(plain) == 1
        return seen == [("shapes",)]

    assert recorded()
    assert recorded(patches={}, patches_replace={})
    assert not recorded(patches={"attn1_patch": [print]})
    assert not recorded(patches_replace={"dit": {("double_block", 1): print}})
    assert not recorded(control={"input": [x]})
    assert not recorded(mask=x)
    assert not recorded(runs=((1, 2.0),))
    assert not recorded(**{OVERRIDE: print})
    assert recorded(PRESETS["fast"])  # without references nothing is kept of them
    assert not recorded(PRESETS["fast"], kept_bytes=(8, 4, 5))


# attention in FP8


def test_attention_is_in_fp8_only_where_nobody_else_has_a_say_in_it(comfyui):
    pytest.importorskip("triton")
    from kontextkit.bridge.hooks import ComfyHooks
    from kontextkit.bridge.prefetch import Prefetch
    from kontextkit.bridge.run import KEY, OVERRIDE, SamplingRun

    cpu = torch.device("cpu")

    def narrow(choices=PRESETS["fast"], runs=(), masked=False, **options):
        run = SamplingRun(replace(choices, compile="fused"), [1.0, 0.0], cpu)
        options = {KEY: run, OVERRIDE: run.attend, **options}
        hooks = ComfyHooks(options, None, Prefetch([], cpu, {}), ("shapes",), (0, 0, 0), runs, masked)
        assert (hooks.parts, hooks.first) in ((run.parts, None), (run.narrow, run.parts))
        return hooks.parts is run.narrow

    assert narrow()
    assert narrow(patches={"post_input": [print]}, patches_replace={})
    assert not narrow(PRESETS["quality"])
    assert not narrow(masked=True)
    assert not narrow(runs=((1, 2.0),))
    assert not narrow(patches={"attn1_patch": [print]})
    assert not narrow(patches={"attn1_output_patch": [print]})
    assert not narrow(patches_replace={"dit": {("double_block", 1): print}})
    assert not narrow(**{OVERRIDE: print})


def test_where_attention_in_fp8_fails_the_picture_still_comes_and_a_note_says_why(comfyui, monkeypatch):
    pytest.importorskip("triton")
    from kontextkit.bridge.run import SamplingRun
    from kontextkit.engine.attention import fp8
    from kontextkit.engine.quant.fp8 import E4M3

    run = SamplingRun(replace(PRESETS["fast"], compile="fused"), [1.0, 0.0], torch.device("cpu"))
    q, k, v = (torch.randn(1, 2, 9, 64).to(E4M3) for _ in range(3))
    good = run.attend_in_fp8(q, k, v)
    assert good.shape == (1, 9, 128)
    monkeypatch.setattr("kontextkit.bridge.run.fastest", lambda q, k, v: "sliced")
    run.attend(None, q.float(), k.float(), v.float(), 2, skip_reshape=True)  # as the first block of a step is
    assert run.attention_used == "fp8"
    assert run.narrow

    def fail(*qkv):
        raise ValueError("No valid engine configs\nmore")

    monkeypatch.setattr(fp8, "attend", fail)
    for _ in range(3):  # the blocks that are left of the pass
        assert error(run.attend_in_fp8(q, k, v).float(), good.float()) < 0.06
    assert run.attention_used == ""
    assert run.notes == ["Attention is exact: in FP8 it does not run on cpu (No valid engine configs)."]
    assert run.narrow is None
    run.narrow = run.parts
    monkeypatch.setattr(fp8, "attend", lambda *qkv: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError, match="full"):
        run.attend_in_fp8(q, k, v)


def test_preset_fast_says_whether_attention_is_in_fp8(comfyui, monkeypatch):
    from kontextkit.bridge import optimize
    from kontextkit.engine.attention import fp8

    cpu = torch.device("cpu")
    choices, lines = optimize.resolve(PRESETS["fast"], cpu)
    assert choices.attention == "comfyui"
    assert "Attention is exact: in FP8 it needs an NVIDIA card." in lines
    monkeypatch.setattr(fp8, "why_not", lambda device: "")
    assert "Attention is exact: in FP8 it needs the fused kernels." in optimize.resolve(PRESETS["fast"], cpu)[1]
    monkeypatch.setattr(optimize, "has_triton", lambda device: True)
    card = torch.device("cuda", 0)
    choices, lines = optimize.resolve(replace(PRESETS["fast"], precision="as loaded"), card)
    assert choices.attention == "fp8"
    assert "Attention: in FP8." in lines
