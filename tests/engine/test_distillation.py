"""Step distillation: a step learns to go as far as several, and the model underneath stays."""

from itertools import pairwise

import pytest
import torch
from kontextkit.engine.lora.profiles import recognise
from kontextkit.engine.lora.read import read_lora
from kontextkit.engine.training.distillation import Distillation
from kontextkit.engine.training.flow_matching import Conditions, velocity
from kontextkit.engine.training.lora import Example, Settings, without_lora
from kontextkit.engine.training.lora_file import save_lora
from loras import linears, random

SETTINGS = Settings(rank=8, alpha=16, steps=40, batch=4, rate=3e-3, dropout=0, distil=2, guidance=2.0)
SIGMAS = torch.tensor([1.0, 0.95, 0.9, 0.8, 0.7, 0.5, 0.0])  # of the model's own steps: three for one


@pytest.fixture
def examples():
    return [Example(random(2, 16, 4, 4, seed=i), random(5, 96, seed=i), random(64, seed=i)) for i in range(4)]


def given(example):
    return Conditions(example.context[None], example.pooled[None], torch.tensor([2.0]), [example.latents[1:]])


@torch.no_grad()
def euler(transformer, x, sigmas, example):
    """As ComfyUI's `euler` sampler steps."""
    for here, there in pairwise(sigmas):
        x = x + (there - here) * velocity(transformer, x, here[None], given(example))
    return x


def test_what_is_learnt_is_where_the_model_s_own_steps_end(build, examples):
    transformer = build("F32")
    first = examples[0]
    noise = random(1, 16, 4, 4, seed=9)
    x = torch.lerp(first.latents[:1], noise, 0.8)
    few, many = (euler(transformer, x, sigmas, first) for sigmas in (SIGMAS[[3, 6]], SIGMAS[3:]))
    training = Distillation(transformer, examples, SETTINGS, {}, SIGMAS)
    loss = training._error(first.latents[:1], noise, SIGMAS[3:4], given(first))
    torch.testing.assert_close(loss, (2 * (few - many)).square().mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("qtype", ["F32", "Q8_0"])
def test_few_steps_with_it_end_near_many_without(build, examples, tmp_path, qtype):
    transformer = build(qtype)
    start = random(1, 16, 4, 4, seed=99)  # none that it learnt from
    many = [euler(transformer, start, SIGMAS, example) for example in examples]
    few = [euler(transformer, start, SIGMAS[::3], example) for example in examples]
    Distillation(transformer, examples, SETTINGS, {}, SIGMAS).run(tmp_path / "c.pt", lambda _: None)
    transformer.eval()
    learnt = [euler(transformer, start, SIGMAS[::3], example) for example in examples]
    with without_lora(transformer):
        assert torch.equal(euler(transformer, start, SIGMAS, examples[0]), many[0])
    before, after = (sum((a - b).norm() for a, b in zip(ends, many, strict=True)) for ends in (few, learnt))
    assert after < 0.8 * before


def test_its_file_tells_for_how_many_steps_it_is(build, examples, tmp_path):
    transformer = build("F32")
    Distillation(transformer, examples, SETTINGS, {}, SIGMAS)
    save_lora(transformer, tmp_path / "fast.safetensors", SETTINGS, "base.gguf")
    sizes = {name: (m.out_features, m.in_features) for name, m in linears(build("F32")).items()}
    profile, why = recognise(read_lora(tmp_path / "fast.safetensors", sizes))
    assert (profile.name, profile.steps, profile.guidance) == ("lightning", 2, 2.0)
    assert "kontextkit.profile" in why


def test_steps_that_cannot_be_shared_out_are_refused(build, examples):
    with pytest.raises(ValueError, match="5 steps of the model cannot be shared out to 2"):
        Distillation(build("F32"), examples, SETTINGS, {}, SIGMAS[1:])
