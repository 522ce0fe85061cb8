"""Sizes on the grid, budgets, and the way of a picture onto the grid and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kontextkit.engine.flux.positions import GRID
from kontextkit.engine.references import cost
from kontextkit.engine.references.pictures import bring_back, bring_to, masks_for, split, stitch, token_mask
from kontextkit.engine.references.plan import Reference, plan, result_size
from kontextkit.engine.references.sizes import FITS, MEGAPIXEL, deviation, frame, n_tokens, shares, size_on_grid

SIDES = st.integers(GRID, 5000)
BUDGETS = st.floats(0.05, 4.0)
EXACT = [(768, 768), (768, 576), (1024, 576), (960, 640)]  # the guide's


def picture(width, height, seed=0):
    """Smooth, so that resampling loses little."""
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1).movedim(1, 3)


@pytest.mark.parametrize("size", EXACT)
def test_the_guide_s_sizes_are_found_exactly(size):
    width, height = size
    assert size_on_grid(size, width * height / MEGAPIXEL) == size
    assert result_size(size, 0) == size
    assert result_size((4 * width, 4 * height), width * height / MEGAPIXEL) == size


@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (16, 9), (3, 2), (2, 3), (21, 9)])
@pytest.mark.parametrize("megapixels", [0.6, 1.0, 2.0])
def test_usual_shapes_are_kept_exactly(shape, megapixels):
    size = size_on_grid(shape, megapixels)
    assert deviation(shape, size) == 0
    assert abs(n_tokens(size) * GRID * GRID / MEGAPIXEL / megapixels - 1) <= 0.125


@given(SIDES, SIDES, BUDGETS)
def test_sizes_lie_on_the_grid_and_near_the_shape(width, height, megapixels):
    if max(width, height) <= 4 * min(width, height):
        size = size_on_grid((width, height), megapixels)
        assert all(side % GRID == 0 for side in size)
        rows = size[1] // GRID
        assert abs(deviation((width, height), size)) <= 0.6 / min(rows, size[0] // GRID)  # of the nearest token


@given(st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=8), st.floats(0.3, 4.0))
def test_references_never_take_more_than_the_budget(shapes, budget):
    granted = shares([1.0] * len(shapes), budget)
    sizes = [
        size_on_grid(shape, share, share < 1.0)
        for shape, share in zip(shapes, granted, strict=True)
        if max(shape) <= 8 * min(shape)
    ]
    if len(shapes) > budget:
        assert sum(map(n_tokens, sizes)) <= budget * MEGAPIXEL / GRID**2
    assert sum(granted) <= max(budget, len(shapes)) * 1.000001


def test_six_references_of_a_budget_cost_what_one_does():
    pictures = [Reference(picture(64, 64), name=str(i)) for i in range(6)]
    one = plan(pictures[:1], (1024, 1024), "offset", 0, "pad")
    six = plan(pictures, (1024, 1024), "offset", 1.0, "pad")
    assert one.n_references == 4096
    assert 0.75 * 4096 <= six.n_references <= 4096
    assert cost.times_as_long(4096, six.n_references) <= cost.times_as_long(4096, 4096)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", [(100, 70), (333, 219), (512, 512), (99, 201)])
def test_a_picture_comes_back_from_the_grid(shape, fit):
    original = picture(*shape)
    size = result_size(shape, 0.25)
    there = bring_to(original, size, fit)
    assert there.shape == (1, size[1], size[0], 3)
    back = bring_back(there, original, fit)
    assert back.shape == original.shape
    assert (back - original).abs().mean() < 0.005
    assert (back - original).abs().max() < 0.06


def test_what_crop_cuts_off_comes_back_bit_for_bit():
    original = picture(250, 64)
    there = bring_to(original, (256, 80), "crop")
    back = bring_back(there * 0, original, "crop")
    border = (back != 0).any(3)[0]
    assert torch.equal(back[0][border], original[0][border])
    assert border[:, 0].all()
    assert border[:, -1].all()
    assert not border[:, 125].any()


def test_on_the_grid_nothing_is_resampled():
    original = picture(256, 128)
    for fit in FITS:
        assert torch.equal(bring_to(original, (256, 128), fit), original)
        assert torch.equal(bring_back(original, original, fit), original)
        assert frame((256, 128), (256, 128), fit).left == 0


def test_grey_and_rgba_become_rgb_and_a_batch_becomes_pictures():
    assert [tuple(each.shape) for each in split(torch.rand(3, 20, 30, 1), "image0")] == [(1, 20, 30, 3)] * 3
    rgba = torch.rand(1, 20, 30, 4)
    assert torch.equal(split(rgba, "image0")[0], rgba[..., :3])
    assert split(torch.rand(1, 20, 30, 3).bfloat16() * 2, "image0")[0].max() <= 1


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 1, 1, 3), "image0: the picture is 1x1 pixels"),
        (torch.zeros(1, 20, 20000, 3), "image0: the picture is 20000x20 pixels"),
        (torch.full((1, 32, 32, 3), torch.nan), "image0: the picture holds NaN"),
        (torch.zeros(1, 32, 32, 2), r"image0: got a tensor of shape \[1, 32, 32, 2\]"),
        (torch.zeros(0, 32, 32, 3), "image0: got a tensor"),
    ],
)
def test_what_cannot_be_a_reference_is_named(image, words):
    with pytest.raises(ValueError, match=words):
        split(image, "image0")


def test_stitched_pictures_stand_where_offset_would_put_them_and_gaps_are_not_seen():
    given = [Reference(picture(64, 64, 1)), Reference(picture(64, 32, 2), 0.5)]
    ((canvas, weights),) = plan(given, (64, 64), "stitched", 0, "pad").encoded()
    placed = plan(given, (64, 64), "stitched", 0, "pad").placed
    assert canvas.shape[1] * canvas.shape[2] == len(weights) * GRID * GRID
    for each in placed:
        part = canvas[:, each.top : each.top + each.size[1], each.left : each.left + each.size[0]]
        assert torch.equal(part, each.pixels)
    assert sum(weight == 1 for weight in weights) == placed[0].n_seen
    assert sum(weight == 0.5 for weight in weights) == placed[1].n_seen
    assert torch.equal(stitch([placed[0].pixels], [(0, 0)]), placed[0].pixels)


def test_work_is_the_count_that_was_measured():
    """165 TFLOP for a step of 1024x1024 with one reference (shared design)."""
    assert cost.flop(4096 + 4096 + 512) == pytest.approx(165e12, rel=0.02)


@pytest.mark.parametrize("shape", [(4032, 3024), (6000, 4000), (4608, 3456)])
def test_the_mask_of_the_picture_before_it_was_scaled_fits(shape):
    width, height = (round(side * (1 / (shape[0] * shape[1] / MEGAPIXEL)) ** 0.5) for side in shape)
    (mask,) = masks_for(torch.ones(1, shape[1], shape[0]), [torch.zeros(1, height, width, 3)])
    assert mask.shape == (height, width)
    with pytest.raises(ValueError, match="of another shape"):
        masks_for(torch.ones(1, shape[1], shape[0]), [torch.zeros(1, height, width - 40, 3)])


def test_a_stroke_too_thin_for_the_scaled_picture_still_shows_its_tokens():
    mask = torch.zeros(4096, 4096)
    mask[1000:1003, 700:3200] = 1
    tokens = token_mask(mask, (512, 512), "pad")
    assert tokens.sum() == tokens[1000 // 128].sum() == 3199 // 128 - 700 // 128 + 1


def test_a_mask_on_the_edge_of_tokens_touches_no_other():
    mask = torch.zeros(1024, 1024)
    mask[256:512, 256:768] = 1
    tokens = token_mask(mask, (512, 512), "fit")
    assert tokens[8:16, 8:24].all()
    assert tokens.sum() == 8 * 16
