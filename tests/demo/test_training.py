"""The whole training on a tiny scale, and what it writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kontextkit.demo import train as command
from kontextkit.demo.training.autoencoder import FLUX_SCALE, FLUX_SHIFT, Autoencoder
from kontextkit.demo.training.export import bfl_state, read_autoencoder
from kontextkit.demo.training.guidance import guidance_embedder_alone
from kontextkit.demo.training.lessons import LEAST_CHANCE, MOST_CHANCE, DemoModel, Lessons, edit_weight
from kontextkit.demo.training.pool import Group
from kontextkit.demo.training.recipe import SMOKE
from kontextkit.demo.training.run import keep
from kontextkit.engine.flux.loop import embed_scalar
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after `demo/train.py --smoke`."""
    folder = tmp_path_factory.mktemp("trained")
    line = [sys.executable, str(ROOT / "demo" / "train.py"), str(folder), "--smoke"]
    result = subprocess.run(line, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_training_runs_resumes_and_writes_what_ships(trained, tmp_path, capsys, monkeypatch):
    def train(folder, *options):
        """The command again, in this process."""
        monkeypatch.setattr(command, "import_pack", lambda: None)
        monkeypatch.setattr(sys, "argv", ["train.py", str(folder), "--smoke", *options])
        command.main()
        return capsys.readouterr().out

    names = sorted(path.name for path in (trained / "export").iterdir())
    assert names == sorted(path.name for path in (ROOT / "demo").glob("kontext_demo_*"))
    assert "editing: going on from step 2" in train(trained)
    train(tmp_path, "--start", str(trained / "export"))
    name = "kontext_demo_vae.safetensors"
    assert (tmp_path / "export" / name).read_bytes() == (trained / "export" / name).read_bytes()


def test_the_exported_transformer_is_the_trained_one(trained):
    """By way of the pack's own loader, in BFL's names, against diffusers' model in the checkpoint."""
    from kontextkit.engine.checkpoint import open_checkpoint
    from kontextkit.engine.flux.weights import read_weights

    state = torch.load(trained / "guidance.pt", weights_only=True)["ema"]
    for name in ("kontext_demo_bf16.safetensors", "kontext_demo_q8_0.gguf"):
        config, weights = read_weights(open_checkpoint(trained / "export" / name))
        assert (config.num_layers, config.num_single_layers) == (SMOKE.n_double, SMOKE.n_single)
        for key, tensor in weights.items():
            # scales of Q8_0 are F16: below 127 times the smallest of them nothing is told apart
            right = state[f"module.transformer.{key}"].float()
            error = (tensor.decode(torch.float32) - right).abs().max()
            assert error <= 0.01 * right.abs().max() + 5e-6, key


def test_bfl_state_undoes_reading(trained):
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from kontextkit.engine.checkpoint import open_checkpoint
    from kontextkit.engine.flux.weights import read_weights

    path = trained / "export" / "kontext_demo_bf16.safetensors"
    config, weights = read_weights(open_checkpoint(path))
    model = FluxTransformer2DModel(**config.as_kwargs())
    model.load_state_dict({name: tensor.decode(torch.float32) for name, tensor in weights.items()})
    ours, file = bfl_state(model), load_file(path)
    assert ours.keys() == file.keys()
    assert all(torch.equal(ours[name].bfloat16(), file[name]) for name in file)


def test_shipped_latents_have_the_mean_and_spread_flux_expects():
    from random import Random

    from kontextkit.demo.training.autoencoder_lessons import _pictures

    model = Autoencoder(SMOKE).eval()
    read_autoencoder(model, ROOT / "demo")
    with torch.no_grad():
        pictures = _pictures(6, 256, Random("test"), torch.device("cpu")).float() / 255
        latents = model.kl.encode(2 * pictures - 1).latent_dist.mode()
        back = model.decode(model.encode(pictures))
    scaled = (latents - FLUX_SHIFT) * FLUX_SCALE
    assert scaled.mean().abs() < 0.2
    assert 0.7 < scaled.std() < 1.3
    assert (back - pictures).abs().mean() < 0.02


def test_settling_changes_latents_but_not_pictures():
    torch.manual_seed(0)
    model = Autoencoder(SMOKE).eval()
    pictures = torch.rand(4, 3, 64, 64)
    with torch.no_grad():
        before = model.kl.decode(model.kl.encode(pictures).latent_dist.mode()).sample
        model.settle(pictures)
        after = model.kl.decode(model.kl.encode(pictures).latent_dist.mode()).sample
        latents = model.encode(pictures)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)
    assert latents.mean().abs() < 0.5
    assert 0.3 < latents.std() < 3


def test_places_that_change_weigh_more():
    clean, reference = torch.zeros(1, 16, 4, 4), torch.zeros(1, 16, 4, 4)
    reference[0, 3, 1, 2] = 2.0
    weight = edit_weight(clean, [reference])
    assert weight[0, 0, 1, 2] == weight.max() > 1
    assert (weight == 1).sum() == 15
    assert edit_weight(clean, []) is None


def test_edits_on_which_the_model_errs_come_more_often():
    generator = torch.Generator().manual_seed(0)
    latents, ids = torch.randn(6, 2, 16, 8, 8, generator=generator), torch.ones(6, 40, dtype=torch.long)
    latents[:5] *= 0.1  # a new model's velocity is 0, so that it errs most on the last
    lessons = Lessons(SMOKE, DemoModel(SMOKE, 5), torch.device("cpu"), rank=0)
    (group,) = lessons.prefer_hard({1: Group(latents, ids)}).values()
    assert ((group.chances >= LEAST_CHANCE) & (group.chances <= MOST_CHANCE)).all()
    assert group.chances.argmax() == 5
    chosen = group.choose(3000, generator)
    share = (chosen == 5).float().mean()
    assert share == pytest.approx((group.chances[5] / group.chances.sum()).item(), abs=0.03)
    assert Group(latents, ids).choose(3000, generator).bincount().min() > 400


def test_a_share_of_the_weights_gone_on_from_is_kept():
    torch.manual_seed(0)
    before, model = DemoModel(SMOKE, 5), DemoModel(SMOKE, 5)
    name = "words.words.weight"
    first, last = before.get_parameter(name).clone(), model.get_parameter(name).clone()
    keep(model, before, 0.25)
    torch.testing.assert_close(model.get_parameter(name).data, 0.75 * last + 0.25 * first)
    assert torch.equal(before.get_parameter(name), first)


def test_the_lesson_of_guidance_changes_nothing_at_guidance_1():
    torch.manual_seed(0)
    model = DemoModel(SMOKE, 5).bfloat16().float()
    embedder = model.transformer.time_text_embed.guidance_embedder
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def embedded(*guidance):
        values = torch.tensor(guidance)
        return embed_scalar(embedder, values, values)

    one = embedded(1.0).detach()
    with guidance_embedder_alone(model, embedder):
        assert torch.equal(embedded(2.0, 9.0), one.expand(2, -1))
        taught = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert len(taught) == 4
        optimizer = torch.optim.AdamW(taught, 1e-2)
        for _ in range(100):
            target = one + torch.tensor([[0.0], [1.0], [4.0]])
            (embedded(1.0, 2.0, 5.0) - target).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    after = embedded(1.0, 2.0, 2.1, 5.0)
    torch.testing.assert_close(after[:1], one, rtol=0, atol=1e-6)
    assert ((after[3] - one).mean() - 4).abs() < 0.3
    assert (after[2] - after[1]).abs().mean() < 0.2
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert len(changed) == 4
    assert all("guidance_embedder" in name for name in changed)
    assert all(parameter.requires_grad for parameter in model.parameters())
