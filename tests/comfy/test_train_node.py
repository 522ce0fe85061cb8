"""The node Train Kontext LoRA: what it gives and refuses, and what ComfyUI's Cancel, cache and queue make of it."""

import io
import json
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from kontextkit.devtools.server import PromptError
from kontextkit.engine.errors import TrainingDataError
from kontextkit.engine.training import lora_file
from kontextkit.engine.training.lora import Settings
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from server_notes import notes

# in a real server


def workflow(folder, lora_name, steps=6, model=("1", 0), **more):
    """Trains, and loads what was trained."""
    links = {"model": list(model), "clip": ["1", 1], "vae": ["1", 2]}
    options = {"folder": str(folder), "lora_name": lora_name, "steps": steps, "rank": 4, "learning_rate": 2e-3}
    load = {"model": ["1", 0], "lora_name": ["2", 0], "strength": 1.0, "profile": "auto"}
    return {
        "1": {"class_type": "KontextLoadDemo", "inputs": {"precision": "Q8_0"}},
        "2": {"class_type": "KontextTrainLoRA", "inputs": links | options | more},
        "3": {"class_type": "KontextLightningLoRA", "inputs": load},
        "4": {"class_type": "PreviewAny", "inputs": {"source": ["3", 3]}},
    }


@pytest.fixture(scope="module")
def folder(server, edits):
    """The edits, in a folder of the server's input directory."""
    shutil.copytree(edits, server.base / "input" / "frames")
    return server.base / "input" / "frames"


@pytest.fixture(scope="module")
def loras(server):
    return server.base / "models" / "loras"


@pytest.fixture(scope="module")
def trained(server, folder, loras):
    """The notes of a training of six steps."""
    return notes(server, workflow("frames", "frame"))


def forget(server):
    """Outputs of before. ComfyUI heeds /free between two prompts: the next might still be served the old ones."""
    requests.post(f"{server.url}/free", json={"unload_models": True, "free_memory": True}, timeout=30)
    gray = {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0x808080}}
    server.run({"1": gray, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})


def said(found, node="2"):
    return [text for where, text in found if where == node]


def files(loras, stem):
    return sorted(path.name for path in loras.glob(f"{stem}*"))


def test_the_node_explains_itself(server):
    node = requests.get(f"{server.url}/object_info/KontextTrainLoRA", timeout=30).json()["KontextTrainLoRA"]
    assert (node["display_name"], node["category"], node["output_node"]) == ("Train Kontext LoRA", "Kontext", True)
    inputs = node["input"]["required"]
    assert list(inputs) == ["model", "clip", "vae", "folder", "lora_name", "steps", "rank", "learning_rate"]
    assert all(len(options["tooltip"]) > 30 for _, options in inputs.values())
    assert [inputs[name][1]["default"] for name in ("steps", "rank", "learning_rate")] == [1000, 8, 1e-4]
    assert node["output_name"] == ["lora_name", "curve", "report"]
    assert all(node["output_tooltips"])


def test_it_trains_and_the_loader_reads_every_key(trained, loras):
    assert said(trained)[0] == "3 edits in frames"
    assert "step 6 of 6" in said(trained)[-2]
    before, after = (float(part.split()[0]) for part in said(trained)[-1].split("noise: ")[1].split(", "))
    assert after < before
    assert "128 of 128 keys matched" in said(trained, "3")[0]
    assert files(loras, "frame") == ["frame.safetensors", "frame_loss.png"]
    with safe_open(loras / "frame.safetensors", "pt") as file:
        assert json.loads(file.metadata()["kontextkit.training"])["rank"] == 4
        assert str(loras) not in json.dumps(file.metadata())


def test_it_is_kept_while_nothing_changes_and_never_overwritten(server, trained, folder, loras):
    written = (loras / "frame.safetensors").read_bytes()
    again = workflow("frames", "frame")
    assert said(notes(server, again)) == []
    forget(server)
    curve = Image.open(io.BytesIO(server.run(again)[0]))
    assert curve.size == (720, 400)
    forget(server)
    assert "nothing to do" in said(notes(server, again))[-1]
    instruction = folder / "0.txt"
    words = instruction.read_text()
    instruction.write_text("add a frame")
    with pytest.raises(PromptError, match="this file is there already"):
        server.run(again)
    instruction.write_text(words)
    with pytest.raises(PromptError, match="this file is there already"):
        server.run(workflow("frames", "frame", steps=7))
    assert (loras / "frame.safetensors").read_bytes() == written


def test_a_cancelled_training_goes_on_where_it_was(server, trained, folder, loras):
    def cancel(_node, step, steps):
        if steps == 24 and step >= 5:
            requests.post(f"{server.url}/interrupt", timeout=30)

    long = workflow("frames", "long", steps=24)
    with pytest.raises(PromptError, match="interrupted"):
        server.run(long, cancel)
    assert files(loras, "long") == ["long.checkpoint", "long_loss.png"]
    (going_on,) = [text for text in said(notes(server, long)) if "going on" in text]
    assert 5 <= int(going_on.split()[-1]) < 24
    assert files(loras, "long") == ["long.safetensors", "long_loss.png"]
    notes(server, workflow("frames", "whole", steps=24))
    whole, parts = (load_file(loras / f"{name}.safetensors") for name in ("whole", "long"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_is_wrong_is_said_and_the_queue_goes_on(server, trained, folder, loras):
    there = files(loras, "")
    lora = {"model": ["1", 0], "lora_name": "frame.safetensors", "strength": 1.0, "profile": "auto"}
    upon = workflow("frames", "upon", model=("5", 0)) | {"5": {"class_type": "KontextLightningLoRA", "inputs": lora}}
    for wish, words in (
        (workflow("nowhere", "x"), "nowhere: there is no such folder"),
        (workflow("frames", "../x"), "expected the name of a new file"),
        (upon, r"The MODEL has a LoRA on it \(frame.safetensors\)"),
    ):
        with pytest.raises(PromptError, match=words) as caught:
            server.run(wish)
        assert caught.value.details["node_id"] == "2"
    assert files(loras, "") == there
    assert server.run(workflow("frames", "frame"))


# in this process


@pytest.fixture
def training(comfyui):
    from kontextkit.bridge import training

    return training


@pytest.mark.parametrize("name", ["", " ", "..", "a/b", "a\\b", ".hidden", "a:b", "a\nb", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(training, name):
    with pytest.raises(TrainingDataError, match="expected the name of a new file"):
        training.new_lora(name)


def test_a_lora_s_name_may_end_as_its_file(training):
    assert training.new_lora("a b.v1.safetensors") == training.new_lora("a b.v1")
    assert training.new_lora("a b.v1").name == "a b.v1.safetensors"


def test_a_folder_is_a_path_or_a_name_in_the_input_directory(training, tmp_path):
    import folder_paths

    assert training.edits_in(str(tmp_path)) == tmp_path
    assert training.edits_in("a") == Path(folder_paths.get_input_directory(), "a")
    with pytest.raises(TrainingDataError, match="folder is empty"):
        training.edits_in(" ")


def test_a_model_of_another_loader_is_refused(training):
    with pytest.raises(ValueError, match="The MODEL is from another loader"):
        training.base_of(SimpleNamespace(model=torch.nn.Identity()))


def test_clip_and_vae_of_another_model_are_refused(training, edits):
    clip, vae = training.demo_encoders()
    config = SimpleNamespace(joint_attention_dim=4096, pooled_projection_dim=768)
    triples = training.find_triples(edits)
    with pytest.raises(
        TrainingDataError, match=r"CLIP gives states of widths \(256, 256\), the model needs \(4096, 768"
    ):
        training.encode(triples, clip, vae, config)
    config = SimpleNamespace(joint_attention_dim=256, pooled_projection_dim=256)
    other = SimpleNamespace(encode=lambda pictures: torch.zeros(2, 4, 8, 8))
    with pytest.raises(
        TrainingDataError, match=r"VAE gives latents of shape \(4, 8, 8\), the model needs \(16, 8, 8\)"
    ):
        training.encode(triples, clip, other, config)


@pytest.mark.usefixtures("as_in_a_running_prompt")
def test_weights_and_edits_are_none_of_inference_mode(training, edits):
    """Those of a float32 file would reach autograd as they are, which refuses them."""
    transformer = training.load_transformer(training.DEMO)
    examples = training.encode(training.find_triples(edits), *training.demo_encoders(), transformer.config)
    tensors = [*transformer.parameters(), *(t for each in examples for t in (each.latents, each.context, each.pooled))]
    assert not any(tensor.is_inference() for tensor in tensors)


@pytest.mark.usefixtures("as_in_a_running_prompt")
@pytest.mark.parametrize("fails", [False, True])
def test_no_weights_and_nothing_half_written_stay(training, edits, tmp_path, monkeypatch, fails):
    kept = []

    def load(path, load=training.load_transformer):
        transformer = load(path)
        kept.append(weakref.ref(transformer))
        return transformer

    def save(_tensors, path, _metadata):
        path.touch()
        raise OSError("the disk is full")

    monkeypatch.setattr(training, "load_transformer", load)
    settings = Settings(rank=1, steps=1)
    if fails:
        monkeypatch.setattr(lora_file, "save_file", save)
    try:
        training.train_lora(
            edits, tmp_path / "a.safetensors", training.DEMO, training.demo_encoders, settings, lambda _: None
        )
    except OSError as error:
        assert fails and "full" in str(error)  # noqa: PT017, PT018
        error.__traceback__ = None
    assert kept[0]() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == (
        ["a.checkpoint", "a_loss.png"] if fails else ["a.safetensors", "a_loss.png"]
    )
