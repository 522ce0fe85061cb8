"""The loss and the loop, against torch's own optimizers, closed forms and uninterrupted runs."""

import copy

import pytest
import torch
from kontextkit.engine.errors import CheckpointError
from kontextkit.engine.flux.config import FluxConfig
from kontextkit.engine.training.flow_matching import (
    CompiledBlocks,
    Conditions,
    draw_sigmas,
    flow_matching_errors,
    guidance_loss,
    velocity,
)
from kontextkit.engine.training.loop import Loop
from kontextkit.engine.training.muon import Muon, orthogonal
from torch import nn


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def transformer():
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(0)
    config = FluxConfig(64, 1, 1, 2, 256, 256, True)
    model = FluxTransformer2DModel(**config.as_kwargs())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    return model.requires_grad_(False)


def conditions(guidance=1.0, seed=1, n_references=2):
    references = [normal(2, 16, 6, 4 + 2 * i, seed=i) for i in range(n_references)]
    return Conditions(normal(2, 5, 256, seed=seed), normal(2, 256, seed=seed), torch.full((2,), guidance), references)


def test_muon_steps_as_torchs_own_does():
    shapes = [(8, 16), (16, 8), (8, 8), (8, 16)]
    ours = [nn.Parameter(normal(*shape, seed=i)) for i, shape in enumerate(shapes)]
    theirs = copy.deepcopy(ours)
    pair = Muon(ours, 0.01), torch.optim.Muon(theirs, 0.01, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = normal(*shapes[i], seed=10 * step + i)
            b.grad = a.grad.clone()
        for optimizer in pair:
            optimizer.step()
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        moved = (b - normal(*shapes[i], seed=i)).norm()
        assert (a - b).norm() < 0.04 * moved  # bfloat16 inside, in another order


def test_muon_makes_updates_orthogonal_and_takes_matrices_only():
    singular = torch.linalg.svdvals(orthogonal(normal(3, 32, 16)).float())
    assert singular.min() > 0.6
    assert singular.max() < 1.3
    with pytest.raises(ValueError, match=r"matrices only.*\[3\]"):
        Muon([nn.Parameter(torch.zeros(3))], 0.1)


def test_a_perfect_velocity_costs_nothing_and_weights_count(transformer):
    given, sigma = conditions(), torch.tensor([0.3, 0.8])
    clean, noise = normal(2, 16, 6, 4, seed=5), normal(2, 16, 6, 4, seed=6)
    x = torch.lerp(clean, noise, sigma[:, None, None, None])
    error = velocity(transformer, x, sigma, given) - (noise - clean)
    loss = flow_matching_errors(transformer, clean, noise, sigma, given).mean()
    assert loss.item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    weight = torch.zeros(2, 1, 6, 4)
    weight[:, :, 0, 0] = 24.0
    weighted = flow_matching_errors(transformer, clean, noise, sigma, given, weight=weight).mean()
    assert weighted.item() == pytest.approx(error[:, :, 0, 0].square().mean().item(), rel=1e-5)


def test_the_velocity_is_that_of_the_hosted_model(transformer, comfyui):
    """Against the class ComfyUI calls, itself tested against ComfyUI's own Flux."""
    from kontextkit.bridge.transformer import HostedTransformer

    given, sigma, x = conditions(2.5), torch.tensor([0.3, 0.8]), normal(2, 16, 6, 4, seed=5)
    hosted = HostedTransformer(transformer, torch.float32)
    with torch.no_grad():
        theirs = hosted(x, sigma, given.context, given.pooled, given.guidance, list(given.references))
    torch.testing.assert_close(velocity(transformer, x, sigma, given), theirs, rtol=1e-5, atol=1e-5)


def test_guidance_is_the_line_through_both_velocities(transformer):
    x, sigma = normal(2, 16, 6, 4, seed=5), torch.tensor([0.3, 0.8])
    given, without = conditions(3.0), conditions(3.0, seed=2)
    plain = conditions(1.0)
    with_text, no_text = velocity(transformer, x, sigma, plain), velocity(transformer, x, sigma, conditions(1.0, 2))
    student = velocity(transformer, x, sigma, given)
    expected = ((student - (no_text + 3 * (with_text - no_text))) / 3).square().mean()
    loss = guidance_loss(transformer, transformer, x, sigma, given, given, without)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_compiled_blocks_are_the_blocks():
    from kontextkit.engine.flux.blocks import double_in

    assert CompiledBlocks().parts.double_in._torchdynamo_orig_callable is double_in


def test_sigmas_are_uniform_then_shifted():
    sigma = draw_sigmas(20000, torch.Generator().manual_seed(0), shift=3.0)
    assert 0 <= sigma.min() <= sigma.max() <= 1
    assert (sigma < 0.75).float().mean().item() == pytest.approx(0.5, abs=0.02)  # 3 * 0.5 / (1 + 2 * 0.5)


def make_loop(n_steps=8):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    return model, Loop(model, n_steps, 0.01, warmup=2, decay_from=0.5, ema_decay=0.9, matrices=["0.weight"])


def loss_of(model):
    return lambda step: (model(normal(16, 4, seed=step)) - normal(16, 4, seed=step)[:, :2]).square().mean()


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    whole, loop = make_loop()
    loop.run(loss_of(whole), report=lambda _: None)
    model, loop = make_loop()

    def broken(step):
        if step == 7:
            raise KeyboardInterrupt
        return loss_of(model)(step)

    with pytest.raises(KeyboardInterrupt):
        loop.run(broken, tmp_path / "a" / "c.pt", report=lambda _: None, report_every=5)
    model, loop = make_loop()
    assert loop.resume(tmp_path / "a" / "c.pt")
    assert loop.step == 5
    loop.run(loss_of(model), report=lambda _: None)
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["c.pt"]


def test_the_loop_learns_and_averages():
    model, loop = make_loop(200)
    before = loss_of(model)(999).item()
    reports = []
    loop.run(loss_of(model), report=reports.append, report_every=100)
    assert loss_of(model)(999).item() < 0.2 * before
    assert loss_of(loop.ema.module)(999).item() < 0.3 * before
    assert [line.split(",")[0] for line in reports] == ["step 100 of 200", "step 200 of 200"]


def test_the_average_of_a_short_run_forgets_its_start():
    model = nn.Linear(1, 1, bias=False)
    start = model.weight.item()
    loop = Loop(model, 50, 0.01, warmup=1)
    loop.run(lambda _: model.weight.sum(), report=lambda _: None)
    went, average = model.weight.item() - start, loop.ema.module.weight.item() - start
    assert average / went > 0.8


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _, loop = make_loop()
    loop.save(tmp_path / "c.pt")
    other = Loop(nn.Linear(3, 3), 8, 0.01)
    with pytest.raises(CheckpointError, match=r"c\.pt: this checkpoint is of another model"):
        other.resume(tmp_path / "c.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:500])
    with pytest.raises(CheckpointError, match=r"torn\.pt"):
        loop.resume(tmp_path / "torn.pt")


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_last_checkpoint(tmp_path):
    model, loop = make_loop()
    loop.save(tmp_path / "c.pt")
    kept = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        loop.run(lambda _: model(torch.ones(1, 4)).sum() * float("nan"), tmp_path / "c.pt", report_every=2)
    assert (tmp_path / "c.pt").read_bytes() == kept
