"""Which profile a LoRA is taken for, and why."""

import pytest
import torch
from kontextkit.engine.lora.adapters import LowRank
from kontextkit.engine.lora.profiles import GUIDANCE, N_LINEARS, PROFILE, PROFILES, STEPS, choose, recognise
from kontextkit.engine.lora.read import Lora


def lora(file_name="x.safetensors", rank=8, n=20, dtype=torch.bfloat16, metadata=None, alphas=False):
    one = LowRank(torch.zeros(rank, 4, dtype=dtype), torch.zeros(4, rank, dtype=dtype), 1.0)
    n_keys = n * (3 if alphas else 2)
    return Lora(file_name, {str(i): one for i in range(n)}, "diffusers", metadata or {}, n_keys, n_keys, ())


def taken_for(*args, **more):
    return recognise(lora(*args, **more))[0].name


TURBO, HYPER, HYPER_16 = "FLUX.1-Turbo-Alpha", "Hyper-FLUX.1-dev-8steps", "Hyper-FLUX.1-dev-16steps"


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "strength"),
    [(TURBO, 8, 2.5, 1.0), (HYPER, 8, 3.5, 0.125), ("lightning", 8, 1.8, 1.0), ("none", 28, 2.5, 1.0)],
)
def test_the_table_has_what_their_authors_recommend(name, steps, guidance, strength):
    profile = PROFILES[name]
    assert (profile.steps, profile.guidance, profile.strength) == (steps, guidance, strength)


@pytest.mark.parametrize(("rank", "dtype"), [(64, torch.bfloat16), (32, torch.float32), (64, torch.float16)])
def test_turbo_alpha_is_known_by_its_layout_under_the_name_it_is_published_under(rank, dtype):
    assert taken_for("diffusion_pytorch_model.safetensors", rank, N_LINEARS, dtype) == TURBO


def test_hyper_is_known_by_its_layout_and_the_two_of_them_apart_by_name():
    assert taken_for("renamed.safetensors", 64, N_LINEARS, torch.float32) == HYPER
    assert taken_for("Hyper-FLUX.1-dev-16steps-lora.safetensors", 64, N_LINEARS, torch.float32) == HYPER_16


def test_an_ordinary_lora_is_none_of_them():
    assert taken_for("my_style.safetensors", 64) == "none"
    assert taken_for("my_style.safetensors", 16, N_LINEARS) == "none"
    assert taken_for("my_style.safetensors", 64, N_LINEARS, alphas=True) == "none"


@pytest.mark.parametrize(
    ("file_name", "expected"),
    [
        ("FLUX.1-Turbo-Alpha.safetensors", TURBO),
        ("flux1-turbo.safetensors", TURBO),
        ("flux_turbo_alpha_r32.safetensors", TURBO),
        ("Hyper-FLUX.1-dev-8steps-lora.safetensors", HYPER),
        ("hyper_flux_16step.safetensors", HYPER_16),
        ("demo-lightning.safetensors", "demo-lightning"),
        ("kontext lightning.safetensors", "lightning"),
        ("kontext_8_steps.safetensors", "lightning"),
        ("style_18steps.safetensors", "none"),
        ("hyperrealism.safetensors", "none"),
    ],
)
def test_a_file_name_is_the_last_hint(file_name, expected):
    profile, why = recognise(lora(file_name))
    assert profile.name == expected
    assert ("file name" in why) == (expected != "none")


def test_metadata_comes_before_everything_else():
    ours = lora("Turbo-Alpha.safetensors", 64, N_LINEARS, metadata={PROFILE: "demo-lightning"})
    assert recognise(ours) == (PROFILES["demo-lightning"], "its metadata has kontextkit.profile = demo-lightning")
    titled = lora("a.safetensors", metadata={"modelspec.title": "FLUX.1-Turbo-Alpha"})
    assert recognise(titled) == (PROFILES[TURBO], "its metadata has modelspec.title = FLUX.1-Turbo-Alpha")
    assert taken_for("a.safetensors", metadata={PROFILE: "from the future"}) == "none"


@pytest.mark.parametrize(
    ("steps", "guidance", "expected"),
    [
        ("4", "1.5", (4, 1.5)),
        ("4", "nan", (8, 1.8)),
        ("0", "1", (8, 1.8)),
        ("many", "1", (8, 1.8)),
        (None, "1", (8, 1.8)),
    ],
)
def test_a_lora_that_we_distilled_says_for_how_many_steps(steps, guidance, expected):
    numbers = {STEPS: steps, GUIDANCE: guidance} if steps else {GUIDANCE: guidance}
    profile, _ = recognise(lora("a.safetensors", metadata={PROFILE: "lightning"} | numbers))
    assert (profile.name, profile.steps, profile.guidance) == ("lightning", *expected)


def test_a_chosen_profile_is_taken_and_an_unknown_one_refused():
    assert choose(lora("Turbo-Alpha.safetensors"), "none") == (PROFILES["none"], "you chose it")
    assert choose(lora("Turbo-Alpha.safetensors"), "auto")[0].name == TURBO
    with pytest.raises(ValueError, match="no profile 'fast'; choose one of auto, FLUX"):
        choose(lora(), "fast")
