"""Training a LoRA: it learns, its file is what was trained, an interrupted run goes on exactly."""

import json

import pytest
import torch
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.lora.profiles import recognise
from kontextkit.engine.lora.read import read_lora
from kontextkit.engine.training.lora import Example, LoraTraining, Recomputed, Settings, lora_layers
from kontextkit.engine.training.lora_file import save_lora
from loras import error, linears, random, velocity, with_loras

SETTINGS = Settings(rank=4, alpha=12, steps=12, batch=2, rate=5e-3)


@pytest.fixture
def examples():
    """Edits of two sizes, one with two references."""
    shapes = [(2, 16, 4, 6), (2, 16, 4, 6), (3, 16, 4, 4)]
    return [Example(random(*s, seed=i), random(5, 96, seed=i), random(64, seed=i)) for i, s in enumerate(shapes)]


@pytest.fixture(params=["F32", "Q8_0"])
def transformer(build, request):
    return build(request.param)


def train(transformer, examples, path, settings=SETTINGS):
    training = LoraTraining(transformer, examples, settings, {"base": "base"})
    training.run(path, lambda _: None)
    return training


def factors(transformer):
    return [tensor.detach().clone() for down, up, _ in lora_layers(transformer).values() for tensor in (down, up)]


def test_it_learns_beside_weights_that_stay_as_they_are(transformer, examples, tmp_path):
    frozen = {name: p.clone() for name, p in transformer.named_parameters()}
    bare = velocity(transformer)
    training = LoraTraining(transformer, examples, SETTINGS, {})
    assert torch.equal(velocity(transformer), bare)
    before = training.measure()
    training.run(tmp_path / "c.pt", lambda _: None)
    assert training.measure() < 0.95 * before
    assert len(training.losses) == SETTINGS.steps
    after = {name.replace(".base_layer", ""): p for name, p in transformer.named_parameters() if "lora_" not in name}
    assert after.keys() == frozen.keys()
    assert all(torch.equal(after[name], frozen[name]) for name in frozen)


def test_its_file_is_the_trained_model_in_our_loader(transformer, build, examples, tmp_path):
    qtype = linears(transformer)["proj_out"].qtype
    train(transformer, examples, tmp_path / "c.pt")
    path = tmp_path / "mine turbo.safetensors"
    save_lora(transformer, path, SETTINGS, "base.gguf")
    fresh = build(qtype)
    lora = read_lora(path, {name: (m.out_features, m.in_features) for name, m in linears(fresh).items()})
    assert lora.matched_share == 1
    assert not lora.skipped
    assert len(lora.adapters) == sum("transformer_blocks." in name for name in linears(fresh))
    assert lora.ranks == (4,)
    assert recognise(lora)[0].name == "none"
    training = json.loads(lora.metadata["kontextkit.training"])
    assert (training["base"], training["alpha"]) == ("base.gguf", 12)
    assert json.loads(lora.metadata["lora_adapter_metadata"])["transformer.r"] == 4
    ours = with_loras(fresh, [lora.adapters], [1.0])
    assert error(ours, velocity(transformer)) < 1e-4
    assert error(ours, velocity(fresh)) > 1e-2
    assert not list(tmp_path.glob("*.part"))


def test_an_interrupted_training_goes_on_exactly(build, examples, tmp_path):
    whole = build("F32")
    losses = train(whole, examples, tmp_path / "whole.pt").losses
    broken = LoraTraining(build("F32"), examples, SETTINGS, {"base": "base"})

    def report(text):
        if text.startswith("step 7"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken.run(tmp_path / "c.pt", report)
    again = build("F32")
    torch.manual_seed(99)  # what else is drawn in between does not matter
    training = train(again, examples, tmp_path / "c.pt")
    assert training.losses == losses
    assert all(torch.equal(a, b) for a, b in zip(factors(whole), factors(again), strict=True))


@pytest.mark.parametrize("last", [0, 5])
def test_a_stopped_training_goes_on_from_the_very_step(build, examples, tmp_path, last):
    whole, again = build("F32"), build("F32")
    train(whole, examples, tmp_path / "whole.pt")
    said = []

    def stop(step):
        if step == last:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LoraTraining(build("F32"), examples, SETTINGS, {"base": "base"}).run(tmp_path / "c.pt", lambda _: None, stop)
    assert (tmp_path / "c.pt").exists() == bool(last)
    LoraTraining(again, examples, SETTINGS, {"base": "base"}).run(tmp_path / "c.pt", said.append)
    assert said[0] == "going on from step 5" if last else said[0].startswith("step 1 of")
    assert all(torch.equal(a, b) for a, b in zip(factors(whole), factors(again), strict=True))


def test_a_checkpoint_of_other_settings_is_refused(build, examples, tmp_path):
    few = Settings(rank=4, alpha=12, steps=1)
    train(build("F32"), examples, tmp_path / "c.pt", few)
    with pytest.raises(CheckpointError, match=r"c\.pt.*seed was 0, is 1"):
        train(build("F32"), examples, tmp_path / "c.pt", Settings(rank=4, alpha=12, steps=1, seed=1))


def test_training_leaves_torchs_random_numbers_alone(build, examples, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(build("F32"), examples, tmp_path / "c.pt", Settings(steps=1))
    assert torch.equal(torch.rand(3), expected)


def test_blocks_computed_again_give_the_same_gradients(build, examples):
    found = []
    for hooks in (None, Recomputed()):
        transformer = build("Q8_0")
        training = LoraTraining(transformer, examples, SETTINGS, {})
        training.hooks = hooks or training.hooks
        transformer.train()
        training._loss(0).backward()
        found.append([p.grad for p in training.adapters])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"steps": 0}, {"batch": 0}, {"rate": 0.0}, {"dropout": 1.0}, {"distil": 17}]
)
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .*expected"):
        Settings(**wrong)
