"""Scenes, pictures and prompts of the demo model's world, and the judge of edits."""

from random import Random

import numpy as np
import pytest
import torch
from kontextkit.demo.training.draw import draw
from kontextkit.demo.training.edits import KINDS, random_edit
from kontextkit.demo.training.judge import judge
from kontextkit.demo.training.pool import learn_words, word_ids
from kontextkit.demo.training.scenes import COLORS, SHAPES, Scene, Texture, Thing
from skimage.draw import disk, polygon2mask

EDITS = [kind for n_references, kinds in KINDS.items() for kind in kinds if n_references]


def filled(shape, side=128, **changes):
    """Where a thing of radius 0.3 lies, in a picture of its own."""
    thing = Thing(shape, "white", 0.5, 0.5, 0.3, **changes)
    return draw([Scene("black", things=(thing,))], side, side)[0].mean(0).numpy() > 0.5


def test_a_circle_and_a_square_are_where_scikit_image_draws_them():
    circle = np.zeros((128, 128), bool)
    circle[disk((63.5, 63.5), 0.95 * 0.3 * 128)] = True
    half = 1.1 * 0.3 * 128 / 2**0.5
    corners = [(63.5 + y * half, 63.5 + x * half) for y, x in ((-1, -1), (-1, 1), (1, 1), (1, -1))]
    square = polygon2mask((128, 128), np.array(corners))
    for shape, right in (("circle", circle), ("square", square)):
        assert (filled(shape) & right).sum() / (filled(shape) | right).sum() > 0.97


def test_every_shape_is_another():
    areas = {shape: filled(shape) for shape in SHAPES}
    for a in SHAPES:
        assert 0.04 < areas[a].mean() < 0.4
        for b in SHAPES[: SHAPES.index(a)]:
            assert (areas[a] & areas[b]).sum() / (areas[a] | areas[b]).sum() < 0.9, (a, b)


def test_pictures_of_any_size_and_shape_show_the_same_scene():
    scene = Scene("blue", Texture("dotted", 0.2, 0.3, (0.1, 0.7)), (Thing("star", "red", 0.9, 0.5, 0.2),), width=1.5)
    small, large = draw([scene], 128, 192), draw([scene], 256, 384)
    assert torch.nn.functional.interpolate(large, scale_factor=0.5, mode="area").sub(small).abs().mean() < 0.01


def test_colors_stay_in_range_and_textures_have_two_tones():
    scenes = [Scene("white", Texture(kind, 0.25)) for kind in ("plain", "striped", "dotted", "checkered")]
    pictures = draw(scenes, 64, 64)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert (pictures[0] - torch.tensor(COLORS["white"])[:, None, None]).abs().max() < 1e-6
    assert (pictures[1:].flatten(1).std(dim=1) > 0.1).all()


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_what_it_says_and_its_right_picture_passes_the_judge(kind):
    rng = Random(f"test {kind}")
    edits = [random_edit(kind, rng) for _ in range(12)]
    before = draw([edit.references[0] for edit in edits], 128, 128)
    right = draw([edit.result for edit in edits], 128, 128)
    assert judge(before, right, right).success.all()
    assert not judge(before, right, before).success.any()
    assert not judge(before, right, right[:, [1, 2, 0]]).success.all()


def test_where_nothing_should_change_nothing_is_right():
    before, other = draw([Scene("green")], 64, 64), draw([Scene("red")], 64, 64)
    assert judge(before, before, before).success.all()
    assert not judge(before, before, other).success.any()


def test_the_judge_sees_a_shifted_thing_a_wrong_tone_and_a_stray_change():
    scene = Scene("green", things=(Thing("square", "white", 0.7, 0.7, 0.15),))
    thing = Thing("circle", "red", 0.3, 0.3, 0.15)
    before = draw([scene], 128, 128)

    def result(**changes):
        moved = Thing(**(thing.__dict__ | changes))
        return draw([Scene("green", things=(*scene.things, moved))], 128, 128)

    right = result()
    assert judge(before, right, result(x=0.305)).success.item()
    assert not judge(before, right, result(x=0.35)).success.item()
    assert not judge(before, right, result(radius=0.1)).success.item()
    assert not judge(before, right, result(texture=Texture("striped", 0.1))).success.item()
    assert not judge(before, right, result(color="orange")).success.item()
    stray = right.clone()
    stray[..., 100:120, 10:30] += 0.3
    assert not judge(before, right, stray).success.item()


def test_a_seed_always_gives_the_same_edit_and_others_differ():
    def some(seed):
        return [random_edit(kind, Random(seed)) for kinds in KINDS.values() for kind in kinds]

    assert some(1) == some(1)
    assert some(1) != some(2)


def test_every_prompt_can_be_read_in_full():
    vocabulary = learn_words(Random(0))
    rng = Random("prompts")
    for kinds in KINDS.values():
        for kind in kinds:
            for _ in range(100):
                ids = word_ids(random_edit(kind, rng, 1.5, 1.0).prompt, vocabulary)
                assert any(ids)
    with pytest.raises(KeyError, match="dragon"):
        word_ids("a red dragon", vocabulary)
