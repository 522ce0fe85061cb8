"""The demo model's CLIP under ComfyUI's own nodes, and what people read about its words."""

import json
import re
from pathlib import Path

import pytest
import torch
from kontextkit.engine.words.vocabulary import N_POSITIONS, Vocabulary
from safetensors import safe_open
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
WORDS, PAGE = ROOT / "demo" / "kontext_demo_words.safetensors", ROOT / "js" / "docs" / "KontextLoadDemo.md"

pytestmark = pytest.mark.usefixtures("as_in_a_running_prompt")


@pytest.fixture(scope="module")
def clip(comfyui):
    from kontextkit.bridge.demo import load_demo

    return load_demo("BF16")[1]


@pytest.fixture(scope="module")
def words():
    with safe_open(str(WORDS), framework="pt") as file:
        return json.loads(file.metadata()["words"])


def encode(clip, text):
    import nodes

    ((context, extra),) = nodes.CLIPTextEncode().encode(clip, text)[0]
    return context, extra["pooled_output"]


def by_hand(words, prompt):
    """Context and pooled of [(word, weight), ...] from the file's tensors."""
    tensors = {name: tensor.float() for name, tensor in load_file(WORDS).items()}
    ids = [words.index(word) + 1 for word, _ in prompt]
    states = tensors["words.weight"][ids] * torch.tensor([[weight] for _, weight in prompt])
    padding = tensors["words.weight"][:1].expand(N_POSITIONS - len(ids), -1)
    return (torch.cat((states, padding)) + tensors["positions.weight"])[None], states.mean(dim=0, keepdim=True)


def test_clip_text_encode_gives_the_states_of_the_words(clip, words):
    context, pooled = encode(clip, "Make the star red")
    assert context.shape == (1, 40, 256)
    assert pooled.shape == (1, 256)
    expected = by_hand(words, [("make", 1), ("the", 1), ("star", 1), ("red", 1)])
    assert torch.allclose(context, expected[0], atol=1e-6)
    assert torch.allclose(pooled, expected[1], atol=1e-6)


def test_weights_are_written_as_everywhere_in_comfyui(clip, words):
    prompt = r"make (the (star)) (red:1.3) \(blue\)"
    weights = [("make", 1), ("the", 1.1), ("star", 1.21), ("red", 1.3), ("blue", 1)]
    for ours, expected in zip(encode(clip, prompt), by_hand(words, weights), strict=True):
        assert torch.allclose(ours, expected, atol=1e-6)


def test_an_empty_prompt_is_no_words_and_no_complaint(clip, caplog):
    context, pooled = encode(clip, "")
    assert context.shape == (1, 40, 256)
    assert not pooled.any()
    assert caplog.text == ""


def test_words_that_cannot_be_read_are_told_and_ignored(clip, caplog):
    ours = encode(clip, "make the (fluffy:1.2) star embedding:cat red")
    assert re.search(r"WARNING .*Unknown words, ignored: fluffy, embedding, cat\. Known: colors, shapes", caplog.text)
    assert all(torch.equal(a, b) for a, b in zip(ours, encode(clip, "make the star red"), strict=True))
    ours = encode(clip, "(red:1.5) " * N_POSITIONS + "blue (green) blue")
    assert "At most 40 words, ignored: blue, green, blue." in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(ours, encode(clip, "(red:1.5) " * N_POSITIONS), strict=True))


def test_inside_a_node_without_a_server_the_log_alone_tells(clip, caplog):
    from comfy_execution.utils import CurrentNodeContext

    with CurrentNodeContext("prompt", "3"):
        encode(clip, "fluffy")
    assert "fluffy" in caplog.text


def test_word_ids_count_the_words_and_tokens_go_back_to_words(clip):
    (section,) = clip.tokenize("make (red:2)", return_word_ids=True)["l"]
    assert [token[1:] for token in section[:3]] == [(1.0, 1), (2.0, 2), (1.0, 0)]
    assert [word for _, word in clip.tokenizer.untokenize(section[:3])] == ["make", "red", ""]


def test_clip_text_encode_flux_takes_pooled_from_the_first_prompt_and_context_from_the_second(clip):
    from comfy_extras.nodes_flux import CLIPTextEncodeFlux

    ((context, extra),) = CLIPTextEncodeFlux.execute(clip, "make the star red", "remove the ring", 2.5)[0]
    assert torch.equal(extra["pooled_output"], encode(clip, "make the star red")[1])
    assert torch.equal(context, encode(clip, "remove the ring")[0])
    assert extra["guidance"] == 2.5


def test_a_clone_with_another_layer_and_hooks_encodes_the_same(clip):
    from comfy_extras.nodes_hooks import SetClipHooks

    import nodes

    clone = nodes.CLIPSetLastLayer().set_last_layer(clip, -2)[0]
    hooked = SetClipHooks().apply_hooks(clone, True, True)[0]
    assert hooked.cond_stage_model is clip.cond_stage_model
    for ours, expected in zip(encode(hooked, "red"), encode(clip, "red"), strict=True):
        assert torch.equal(ours, expected)


def test_a_patch_changes_a_clone_and_nothing_else(clip):
    import comfy.model_management

    before, _ = encode(clip, "red")
    clone = clip.clone()
    assert clone.add_patches({"words.weight": ("diff", (torch.ones_like(clip.cond_stage_model.words.weight),))})
    assert torch.allclose(encode(clone, "red")[0], before + 1, atol=1e-5)
    assert torch.equal(encode(clip, "red")[0], before)
    comfy.model_management.unload_all_models()
    assert torch.equal(encode(clip, "red")[0], before)


def test_a_few_words_are_left_out_of_dynamic_vram(comfyui, monkeypatch):
    """There, ComfyUI would ignore patches on them, and SetClipHooks would fail."""
    import comfy.model_patcher
    from kontextkit.bridge.demo import read_words
    from kontextkit.bridge.words import make_clip

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", None)
    assert not make_clip(*read_words(WORDS)).patcher.is_dynamic()


def test_clip_save_writes_the_weights(clip, tmp_path):
    from comfy_extras.nodes_model_merging import CLIPSave

    saver = CLIPSave()
    saver.output_dir = str(tmp_path)
    saver.save(clip, "words")
    (path,) = tmp_path.glob("*.safetensors")
    saved, shipped = load_file(path), load_file(WORDS)
    assert saved.keys() == shipped.keys()
    assert all(torch.equal(saved[name], tensor.float()) for name, tensor in shipped.items())


def test_the_help_page_lists_the_words_and_its_prompts_are_understood(words):
    page = PAGE.read_text()
    listed = re.findall(r"\w+", page.partition("## The words it knows")[2].partition("Some others")[0])
    assert set(words) <= set(listed)
    prompts = re.findall("`(.*?)`", page.partition("## Prompts")[2].partition("##")[0])
    assert len(prompts) > 15
    vocabulary = Vocabulary(words)
    for prompt in prompts:
        assert vocabulary.read(prompt.replace(":1.3", "")).unknown == [], prompt


def test_synonyms_stand_for_words_that_the_model_was_taught(words):
    from kontextkit.engine.words.vocabulary import _SAME

    assert set(_SAME.values()) <= set(words)
    assert not set(_SAME) & set(words)


def test_words_that_the_note_names_are_known(words):
    from kontextkit.bridge.words import HELP

    verbs = re.findall(r"and (.*?)\.", HELP)[0]
    assert Vocabulary(words).read(verbs).unknown == []
    assert len(Vocabulary(words).read(verbs).ids) == 9
