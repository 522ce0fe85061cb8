"""The node Quantize Kontext in a real server: what it writes, shows and refuses, and what Cancel leaves."""

import hashlib
import json
import re

import pytest
import requests
from kontextkit.devtools.server import PromptError
from kontextkit.engine.gguf import read_header
from server_notes import notes

NAMES = ["filename", "report", "comparison"]
MODEL = "flux1-dev-kontext_fp8_scaled.safetensors"  # a stand-in


def workflow(filename, qtype="Q4_K_M", model_name=MODEL, **more):
    inputs = {"model_name": model_name, "qtype": qtype, "filename": filename}
    return {
        "1": {"class_type": "KontextQuantize", "inputs": inputs | more},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 2]}},  # runs only after a check
    }


def checked(filename, qtype):
    """The same with a prompt, a VAE and a latent of the demo model's."""
    nodes = workflow(filename, qtype, positive=["4", 0], vae=["3", 2], latent_image=["5", 0], steps=4)
    nodes["3"] = {"class_type": "KontextLoadDemo", "inputs": {"precision": "Q8_0"}}
    prompt = {"text": "a large red star in the middle on a blue background", "clip": ["3", 1]}
    nodes["4"] = {"class_type": "CLIPTextEncode", "inputs": prompt}
    nodes["5"] = {"class_type": "EmptySD3LatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}}
    return nodes


def report(found):
    return [text for node, text in found if node == "1"][-1]


def files(models, stem):
    return sorted(path.name for path in models.iterdir() if stem in path.name)


def test_the_node_explains_itself(server):
    node = requests.get(f"{server.url}/object_info/KontextQuantize", timeout=30).json()["KontextQuantize"]
    assert (node["display_name"], node["category"], node["output_node"]) == ("Quantize Kontext", "Kontext", True)
    assert list(node["input"]["required"]) == ["model_name", "qtype", "filename"]
    assert list(node["input"]["optional"]) == ["lora_name", "strength", "positive", "vae", "latent_image", "steps"]
    inputs = node["input"]["required"] | node["input"]["optional"]
    assert all(len(options["tooltip"]) > 25 for _, options in inputs.values())
    assert (node["output"], node["output_name"]) == (["STRING", "STRING", "IMAGE"], NAMES)


def test_it_writes_a_file_that_the_loader_lists_and_says_how_far_it_is(server, models):
    found = notes(server, workflow("small"))
    assert files(models, "small") == ["small.gguf", "small.gguf.json"]
    assert re.search(r"Q4_K_M: 100%, .* million weights a second", "\n".join(text for _, text in found))
    digest = hashlib.sha256((models / "small.gguf").read_bytes()).hexdigest()
    assert f"SHA-256 {digest}" in report(found)
    assert json.loads((models / "small.gguf.json").read_text())["source"][0]["name"] == MODEL
    loader = requests.get(f"{server.url}/object_info/KontextLoadModel", timeout=30).json()["KontextLoadModel"]
    options = loader["input"]["required"]["model_name"]
    assert "small.gguf" in (options[1]["options"] if options[0] == "COMBO" else options[0])


def test_an_empty_filename_becomes_the_model_s_name_and_the_type(server, models):
    notes(server, workflow("", "Q8_0"))
    assert read_header(models / f"{MODEL.removesuffix('.safetensors')}-Q8_0.gguf").metadata["general.file_type"] == 7


def test_the_check_compares_pictures_of_source_and_result(server):
    said = report(notes(server, checked("checked", "Q5_K_M")))
    each, mean = re.search(r"SSIM of 3 pictures to the source's: (.*); mean (0\.\d+), passes", said).groups()
    values = [float(value) for value in each.split(", ")]
    assert float(mean) == pytest.approx(sum(values) / 3, abs=2e-4)
    assert all(value < 1 for value in values)


def test_a_cancelled_run_leaves_nothing(server, models):
    def cancel(_node, done, total):
        if 0 < done < total:
            requests.post(f"{server.url}/interrupt", timeout=30)

    with pytest.raises(PromptError, match="interrupted"):
        server.run(workflow("cancelled", "Q3_K_M"), cancel)
    assert files(models, "cancelled") == []


def test_a_bad_name_and_half_a_check_are_explained(server):
    with pytest.raises(PromptError, match=r"filename is '\.\./up', expected the name of a new file"):
        server.run(workflow("../up"))
    half = checked("half", "Q4_0")
    del half["1"]["inputs"]["vae"]
    with pytest.raises(PromptError, match="2 connected, expected none or all"):
        server.run(half)


def test_another_file_under_the_lora_s_name_quantizes_anew(comfyui, monkeypatch):
    from kontextkit.bridge.paths import Shelf
    from kontextkit.nodes.quantize import NO_LORA, KontextQuantize

    def mark(lora_name, day):
        monkeypatch.setattr(Shelf, "fingerprint", lambda _, name: f"{name} of {day if name == 'l' else 'monday'} ")
        return KontextQuantize.fingerprint_inputs(model_name="m", lora_name=lora_name)

    assert mark("l", "monday") == "m of monday l of monday "
    assert mark("l", "tuesday") == "m of monday l of tuesday "
    assert mark(NO_LORA, "tuesday") == mark(None, "tuesday") == "m of monday "
