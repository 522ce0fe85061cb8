"""The demo model's three outputs under ComfyUI's own nodes, whatever its weights have learned."""

import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from kontextkit.devtools.server import PromptError
from kontextkit.engine.errors import CheckpointError
from oracle import error
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from server_notes import notes

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo"
WORDS, VAE = "kontext_demo_words.safetensors", "kontext_demo_vae.safetensors"
BF16, Q8_0 = "kontext_demo_bf16.safetensors", "kontext_demo_q8_0.gguf"

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture(scope="module")
def node(comfyui):
    from kontextkit.nodes.load_demo import KontextLoadDemo

    return KontextLoadDemo


@pytest.fixture(scope="module")
def loaded(node):
    return node.execute("BF16").result


@pytest.fixture
def copied(comfyui, tmp_path, monkeypatch):
    """A copy of the files, for a test to break."""
    from kontextkit.bridge import demo

    for name in (BF16, Q8_0, WORDS, VAE):
        shutil.copy(DEMO / name, tmp_path)
    monkeypatch.setattr(demo, "FOLDER", tmp_path)
    return tmp_path


def picture(height=64, width=64):
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(0))


# all three


def sample(loaded, prompt="make the star red", size=(64, 64), references=1):
    """Two steps of an edit with ComfyUI's nodes, decoded."""
    import node_helpers
    from comfy_extras.nodes_flux import FluxGuidance

    import nodes

    model, clip, vae = loaded
    latent = nodes.VAEEncode().encode(vae, picture(*size))[0]
    positive = FluxGuidance.execute(nodes.CLIPTextEncode().encode(clip, prompt)[0], 2.5)[0]
    for _ in range(references):
        more = {"reference_latents": [latent["samples"]]}
        positive = node_helpers.conditioning_set_values(positive, more, append=True)
    negative = nodes.ConditioningZeroOut().zero_out(positive)[0]
    latent = nodes.KSampler().sample(model, 1, 2, 1.0, "euler", "simple", positive, negative, latent, 1.0)[0]
    assert latent["samples"].shape == (1, 16, size[0] // 8, size[1] // 8)
    return nodes.VAEDecode().decode(vae, latent)[0]


def test_k_sampler_paints_and_heeds_prompt_and_references(loaded):
    painted = sample(loaded)
    assert painted.shape == (1, 64, 64, 3)
    assert painted.std() > 1e-3
    assert torch.equal(painted, sample(loaded))
    assert not torch.equal(painted, sample(loaded, prompt="remove the ring"))
    assert not torch.equal(painted, sample(loaded, references=0))
    assert not torch.equal(painted, sample(loaded, references=2))


def test_latents_of_odd_sides_are_sampled(loaded):
    assert sample(loaded, size=(190, 250)).shape == (1, 184, 248, 3)


def test_q8_0_paints_nearly_the_same_picture(loaded, node):
    assert error(sample(node.execute("Q8_0").result), sample(loaded)) < 0.1


@pytest.mark.parametrize(("precision", "most"), [("Q5_K_M", 0.15), ("Q4_K_M", 0.25), ("Q3_K_M", 0.4)])
def test_a_k_quant_is_made_once_and_paints_a_similar_picture(loaded, node, precision, most, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path / "temp"))
    assert 0 < error(sample(node.execute(precision).result), sample(loaded)) < most
    (made,) = (tmp_path / "temp").glob("*.gguf")
    assert precision.lower() in made.name
    written = made.stat().st_mtime_ns
    node.execute(precision)
    assert made.stat().st_mtime_ns == written


def test_prompts_can_be_combined(loaded):
    import nodes

    parts = [nodes.CLIPTextEncode().encode(loaded[1], text)[0] for text in ("a red background", "a blue star")]
    both = nodes.ConditioningCombine().combine(*parts)[0]
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    out = nodes.KSampler().sample(loaded[0], 1, 1, 1.0, "euler", "simple", both, parts[1], latent, 1.0)[0]
    assert torch.isfinite(out["samples"]).all()


# files


def test_only_precisions_whose_file_is_there_or_can_be_made_are_offered(node, copied):
    def offered():
        (precision,) = node.define_schema().inputs
        assert precision.default == precision.options[0]
        return precision.options

    assert offered() == ["BF16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q3_K_M"]
    (copied / BF16).unlink()
    assert offered() == ["Q8_0"]
    shutil.rmtree(copied)
    assert offered() == ["BF16"]  # running it says what is missing


def test_a_changed_file_is_loaded_again_and_no_path_is_told(node, copied):
    first = node.fingerprint_inputs("BF16")
    assert first == node.fingerprint_inputs("BF16") != node.fingerprint_inputs("Q8_0")
    assert re.fullmatch(r"[0-9a-f]{64}", first)
    seen = {first}
    for change in (lambda path: os.utime(path, (1, 1)), lambda path: path.write_bytes(b"1"), Path.unlink):
        change(copied / VAE)
        assert node.fingerprint_inputs("BF16") not in seen
        seen.add(node.fingerprint_inputs("BF16"))


def rewrite(change, metadata=None):
    """A change of a safetensors file's tensors, and other metadata."""

    def apply(path):
        with safe_open(str(path), framework="pt") as file:
            kept = file.metadata()
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, kept if metadata is None else metadata)

    return apply


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def widen(tensors):
    tensors["positions.weight"] = torch.zeros(41, 256)


DAMAGE = {
    "gone words": (WORDS, Path.unlink, "the file is missing from the pack's folder demo/"),
    "gone vae": (VAE, Path.unlink, "the file is missing"),
    "gone transformer": (BF16, Path.unlink, "the file is missing"),
    "empty": (WORDS, lambda path: path.write_bytes(b""), "the file is empty"),
    "pointer": (VAE, lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
    "cut vae": (VAE, cut, "broken safetensors header"),
    "cut transformer": (BF16, cut, "broken safetensors header"),
    "half a vae": (VAE, rewrite(lambda t: t.pop("decoder.conv_in.bias")), "1 of .* missing: decoder.conv_in.bias"),
    "half a transformer": (BF16, rewrite(lambda t: t.pop("img_in.bias")), r"1 of .* missing: img_in\.bias"),
    "more": (VAE, rewrite(lambda t: t.update(odd=torch.ones(1))), "1 tensors belong to no such model: odd"),
    "shape": (WORDS, rewrite(widen), r"'positions\.weight' has shape \[41, 256\], expected \[40, 256\]"),
    "no list": (WORDS, rewrite(dict, {"format": "pt"}), "has '' under 'words', expected a JSON list"),
    "no words": (WORDS, rewrite(dict, {"words": "[1]"}), r"has '\[1\]' under 'words', expected a JSON list"),
    "few words": (WORDS, rewrite(dict, {"words": '["a"]'}), r"'words\.weight' has shape .* expected \[2, 256\]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_missing_or_damaged_file_is_named_with_the_way_out(node, copied, damage):
    name, harm, message = DAMAGE[damage]
    harm(copied / name)
    with pytest.raises(CheckpointError, match=message) as caught:
        node.execute("BF16")
    assert str(caught.value).startswith(name)
    assert "run `git checkout demo/`" in str(caught.value)


def test_a_missing_file_is_told_before_the_prompt_is_queued(node, copied):
    assert node.validate_inputs() is node.validate_inputs("BF16") is True
    assert "none of BF16, Q8_0" in node.validate_inputs("Q2_K")
    (copied / BF16).unlink()
    assert node.validate_inputs("Q8_0") is True
    assert node.validate_inputs("BF16").startswith(f"{BF16}: the file is missing")


# a real server


def workflow(prompt, precision="BF16"):
    return {
        "1": {"class_type": "KontextLoadDemo", "inputs": {"precision": precision}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": prompt}},
        "3": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "4": {
            "class_type": "KSampler",
            "inputs": {"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
            | {"seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0},
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "demo"}},
    }


def test_the_prompts_node_shows_a_note_until_every_word_is_understood(server):
    assert notes(server, workflow("a red background")) == []
    ((node, text),) = notes(server, workflow("a red fluffy background"))
    assert node == "2"
    assert text.startswith("Unknown words, ignored: fluffy.\nKnown: colors, shapes")
    assert notes(server, workflow("a blue background")) == [("2", "Every word was understood.")]
    assert notes(server, workflow("a green background")) == []


def test_a_server_paints_with_it_and_tells_no_path(server):
    (png,) = server.run(workflow("a large red star in the middle on a blue background", "Q8_0"))
    assert png.startswith(b"\x89PNG")
    assert str(ROOT).encode() not in png


def test_an_unknown_precision_is_refused_before_it_is_queued(server):
    with pytest.raises(PromptError, match="none of BF16"):
        server.run(workflow("red", "Q2_K"))
