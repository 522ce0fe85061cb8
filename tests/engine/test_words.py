"""Prompts to word numbers, word numbers to what FLUX reads."""

import pytest
import torch
from kontextkit.engine.words.encoder import WordEncoder
from kontextkit.engine.words.vocabulary import N_POSITIONS, PADDING, Vocabulary
from torch.nn.functional import embedding

VOCABULARY = Vocabulary(["make", "the", "star", "red", "gray", "2"])


def padded(*ids):
    return torch.tensor([[*ids, *[PADDING] * (N_POSITIONS - len(ids))]])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return WordEncoder(len(VOCABULARY.words), 8).requires_grad_(False)


def test_words_are_numbered_from_one_in_the_order_of_the_prompt():
    words = VOCABULARY.read("make the star red")
    assert words.ids == [1, 2, 3, 4]
    assert words.unknown == words.beyond == []


@pytest.mark.parametrize(
    "prompt", ["Make THE star, red!", "make\nthe\tstar...red", "make_the-star/red", "«make» the starred"]
)
def test_case_and_punctuation_do_not_matter_but_words_are_whole(prompt):
    whole = "starred" not in prompt
    assert VOCABULARY.read(prompt).ids == ([1, 2, 3, 4] if whole else [1, 2])
    assert VOCABULARY.read(prompt).unknown == ([] if whole else ["starred"])


def test_common_synonyms_are_understood():
    assert VOCABULARY.read("grey") == VOCABULARY.read("gray")


def test_unknown_words_are_named_once_in_order_and_the_rest_is_read():
    words = VOCABULARY.read("make the cat red, the dog too, the cat 2")
    assert words.unknown == ["cat", "dog", "too"]
    assert words.ids == [1, 2, 4, 2, 2, 6]


def test_words_past_the_last_position_are_named():
    words = VOCABULARY.read("red " * N_POSITIONS + "the star")
    assert words.ids == [4] * N_POSITIONS
    assert words.beyond == ["the", "star"]


@pytest.mark.parametrize("prompt", ["", "   ", "...!?", "()"])
def test_a_prompt_without_words_is_read_as_none(prompt):
    words = VOCABULARY.read(prompt)
    assert words.ids == words.unknown == words.beyond == []


def test_context_is_a_state_a_word_plus_a_state_a_position(encoder):
    ids = padded(1, 2, 4)
    context, pooled = encoder(ids)
    states = embedding(ids, encoder.words.weight)
    assert torch.equal(context, states + encoder.positions.weight)
    assert torch.allclose(pooled, states[:, :3].mean(dim=1))


def test_a_weight_of_one_changes_nothing_and_another_only_its_own_word(encoder):
    ids, weights = padded(1, 2, 4), torch.ones(1, N_POSITIONS)
    context, _ = encoder(ids)
    assert torch.equal(encoder(ids, weights)[0], context)
    weights[0, 2] = 1.5
    changed = (encoder(ids, weights)[0] != context).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [2]


def test_no_words_have_pooled_zeros(encoder):
    context, pooled = encoder(padded())
    assert torch.equal(pooled, torch.zeros(1, 8))
    assert torch.isfinite(context).all()


def test_a_prompt_is_encoded_alike_alone_and_in_a_batch(encoder):
    both = encoder(torch.cat((padded(1, 2, 4), padded(3))))
    for i, alone in enumerate((encoder(padded(1, 2, 4)), encoder(padded(3)))):
        assert all(torch.equal(part[i : i + 1], own) for part, own in zip(both, alone, strict=True))
