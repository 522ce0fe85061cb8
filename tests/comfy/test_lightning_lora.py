"""The node: what it lists, gives, says and refuses."""

import math
import shutil

import pytest
import torch
from kontextkit.devtools.server import PromptError
from loras import random
from oracle import k_sampler
from safetensors.torch import save_file
from server_notes import notes

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


def write(path, linears, metadata=None, spoil=0.0):
    """A LoRA of rank 4 on {name: (out, in)}, of which a share has names that no model knows."""
    tensors = {}
    for i, (name, (n_out, n_in)) in enumerate(linears.items()):
        stem = f"transformer.{name}" if i >= spoil * len(linears) else f"transformer.unheard_of.{i}"
        tensors[f"{stem}.lora_A.weight"] = random(4, n_in, seed=i) * 0.1
        tensors[f"{stem}.lora_B.weight"] = random(n_out, 4, seed=-i) * 0.1
    save_file(tensors, path, metadata)


def shapes(model):
    layers = model.model.diffusion_model.transformer.named_modules()
    return {name: (m.out_features, m.in_features) for name, m in layers if hasattr(m, "qtype")}


@pytest.fixture
def folder(comfyui, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    return tmp_path


@pytest.fixture
def node(comfyui):
    from kontextkit.nodes.lightning_lora import KontextLightningLoRA

    return KontextLightningLoRA


def test_the_loras_folder_is_listed(folder, node):
    (folder / "b.safetensors").touch()
    (folder / "deep").mkdir()
    (folder / "deep" / "a.safetensors").touch()
    inputs = {each.id: each for each in node.define_schema().inputs}
    assert list(inputs) == ["model", "lora_name", "strength", "profile"]
    assert [name.replace("\\", "/") for name in inputs["lora_name"].options] == ["b.safetensors", "deep/a.safetensors"]
    assert str(folder) in inputs["lora_name"].tooltip
    assert all(each.tooltip for each in [*inputs.values(), *node.define_schema().outputs])


def test_it_gives_a_changed_model_and_what_the_lora_wants(folder, node, model):
    write(folder / "Turbo-Alpha.safetensors", shapes(model))
    changed, steps, guidance, report = node.execute(model, "Turbo-Alpha.safetensors", 1.0, "auto").result
    assert not torch.equal(k_sampler(changed), k_sampler(model))
    assert (steps, guidance) == (8, 2.5)
    assert report.startswith(
        "8 steps, guidance 2.5: profile FLUX.1-Turbo-Alpha, because its file name says so: Turbo-Alpha.safetensors.\n"
        "Turbo-Alpha.safetensors: diffusers names, rank 4, changes "
    )
    assert "Warning" not in report


def test_the_report_says_where_the_strength_is_not_the_profile_s(folder, node, model):
    write(folder / "x.safetensors", shapes(model), {"kontextkit.profile": "Hyper-FLUX.1-dev-8steps"})
    *_, report = node.execute(model, "x.safetensors", 1.0, "auto").result
    assert "Strength 1; Hyper-FLUX.1-dev-8steps was made for 0.125." in report
    *_, report = node.execute(model, "x.safetensors", 0.125, "auto").result
    assert "was made for" not in report
    *_, report = node.execute(model, "x.safetensors", 0.5, "none").result
    assert "was made for" not in report
    *_, report = node.execute(model, "x.safetensors", 0.0, "auto").result
    assert "Strength 0: the model is as it was." in report


def test_fewer_than_nine_in_ten_matched_keys_are_a_warning(folder, node, model, caplog):
    write(folder / "x.safetensors", shapes(model), spoil=0.05)
    *_, report = node.execute(model, "x.safetensors", 1.0, "auto").result
    assert "Warning" not in report
    write(folder / "y.safetensors", shapes(model), spoil=0.3)
    *_, report = node.execute(model, "y.safetensors", 1.0, "auto").result
    assert report.startswith("Warning: only ")
    assert "of the keys match this model, the rest has no effect." in report
    assert "y.safetensors: Warning: only " in caplog.text


def test_no_matched_key_is_an_error(folder, node, model):
    write(folder / "x.safetensors", shapes(model), spoil=1.0)
    with pytest.raises(ValueError, match=r"x\.safetensors: none of \d+ keys matches this model"):
        node.execute(model, "x.safetensors", 1.0, "auto")


@pytest.mark.parametrize("strength", [1e9, -10.1, math.inf, math.nan])
def test_a_strength_out_of_range_is_refused(folder, node, model, strength):
    write(folder / "x.safetensors", shapes(model))
    with pytest.raises(ValueError, match=r"x\.safetensors: its strength is .*, expected a number from -10 to 10"):
        node.execute(model, "x.safetensors", strength, "auto")


def test_a_changed_file_is_applied_again_and_a_link_is_no_file(folder, node):
    path = folder / "x.safetensors"
    path.write_bytes(b"1")
    first = node.fingerprint_inputs(model=None, lora_name="x.safetensors", strength=1.0, profile="auto")
    assert first == node.fingerprint_inputs(model=None, lora_name="x.safetensors", strength=None, profile="auto")
    path.write_bytes(b"22")
    assert node.fingerprint_inputs(lora_name="x.safetensors") != first
    assert node.fingerprint_inputs(model=None, lora_name=None) == ""


def test_the_demo_s_own_lightning_lora_matches_whole_and_asks_for_8_steps(folder, node):
    from kontextkit.bridge.demo import FOLDER, load_demo

    shutil.copy(FOLDER / "demo_lightning.safetensors", folder)
    _, steps, guidance, report = node.execute(load_demo("BF16")[0], "demo_lightning.safetensors", 1.0, "auto").result
    assert (steps, guidance) == (8, 1.0)
    assert "128 of 128 keys" in report
    assert "Warning" not in report


# in a real server


def workflow(strength=1.0, lora_name="Turbo-Alpha.safetensors"):
    options = {"model": ["1", 0], "lora_name": lora_name, "strength": strength, "profile": "auto"}
    sampler = {"seed": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"model": ["5", 0], "positive": ["4", 0], "negative": ["2", 0], "latent_image": ["3", 0], "steps": ["5", 1]}
    return {
        "1": {"class_type": "KontextLoadDemo", "inputs": {"precision": "Q8_0"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red star"}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {"class_type": "FluxGuidance", "inputs": {"conditioning": ["2", 0], "guidance": ["5", 2]}},
        "5": {"class_type": "KontextLightningLoRA", "inputs": options},
        "6": {"class_type": "KSampler", "inputs": sampler | links},
        "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
        "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "lora"}},
    }


@pytest.fixture(scope="module")
def loras(server):
    """The server's folder of LoRAs, with one for the demo model in it."""
    from kontextkit.bridge.demo import load_demo

    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "Turbo-Alpha.safetensors", shapes(load_demo("Q8_0")[0]), spoil=0.3)
    return folder


def test_a_server_samples_with_it_for_as_many_steps_and_shows_what_it_found(server, loras):
    steps = []
    ((node, text),) = notes(server, workflow(), lambda step, n_steps: steps.append((step, n_steps)))
    assert (8, 8) in steps
    assert node == "5"
    warning, profile, matched = text.splitlines()
    assert warning.startswith("Warning: only 69%")
    assert profile.startswith("8 steps, guidance 2.5: profile FLUX.1-Turbo-Alpha")
    assert "keys matched (69%" in matched


def test_a_server_refuses_a_strength_of_a_thousand_million_and_goes_on(server, loras):
    with pytest.raises((PromptError, RuntimeError), match="bigger than max"):
        server.run(workflow(1e9))
    assert len(server.run(workflow(0.5))) == 1
