"""Crop to Mask and Stitch: the box, the way back, the seam, the colors."""

import pytest
import torch
from kontextkit.engine.flux.positions import GRID
from kontextkit.engine.inpaint.crop import crop_to_mask, stitch


def picture(n=1, height=200, width=300, channels=3):
    return torch.rand(n, height, width, channels, generator=torch.Generator().manual_seed(0))


def mask(*boxes, height=200, width=300):
    found = torch.zeros(len(boxes), height, width)
    for one, (left, top, right, bottom) in zip(found, boxes, strict=True):
        one[top:bottom, left:right] = 1
    return found


@pytest.mark.parametrize(
    ("box", "context", "expected"),
    [
        ((100, 80, 140, 120), 20, (100 - 20, 80 - 20, 80, 80)),
        ((100, 80, 141, 120), 20, (100 - 20 - 8, 80 - 20, 96, 80)),  # snapped outwards, to both sides
        ((0, 0, 40, 200), 8, (0, 0, 48, 208)),  # within the picture where it fits
        ((290, 190, 300, 200), 0, (300 - 16, 200 - 16, 16, 16)),
        ((0, 0, 300, 200), 64, (0, 0, 304, 208)),
    ],
)
def test_the_box_is_the_mask_with_context_on_the_grid(box, context, expected):
    part, part_mask, crop = crop_to_mask(picture(), mask(box), context, size=0)
    left, top, width, height = expected
    assert (crop.left, crop.top, crop.width, crop.height) == expected
    assert part.shape == (1, height, width, 3)
    assert width % GRID == height % GRID == 0
    inside = picture()[:, top : top + height, left : left + width]
    assert torch.equal(part[:, : inside.shape[1], : inside.shape[2]], inside)
    assert torch.equal(part[:, -1, 5], picture()[:, min(199, top + height - 1), left + 5])  # the border goes on
    assert part_mask.shape == (1, height, width)


@pytest.mark.parametrize("size", [256, 512])
def test_the_part_has_the_models_size_in_its_own_shape(size):
    part, part_mask, crop = crop_to_mask(picture(), mask((100, 80, 196, 120)), 4, size)
    height, width = part.shape[1:3]
    assert part_mask.shape == (1, height, width)
    assert height % GRID == width % GRID == 0
    assert height * width == pytest.approx(size**2, rel=0.1)
    assert width / height == pytest.approx(crop.width / crop.height, rel=0.1)
    assert (part.min() >= 0, part.max() <= 1) == (True, True)


@pytest.mark.parametrize("boxes", [[(30, 20, 90, 70)], [(30, 20, 90, 70), (200, 100, 300, 200)]])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("feather", [0, 8])
@pytest.mark.parametrize("match_colors", [False, True])
def test_outside_the_mask_the_picture_is_the_originals_bit_for_bit(boxes, channels, feather, match_colors):
    image, masks = picture(2, channels=channels), mask(*boxes)
    masks[0, 50, 60:80] = 0.4  # a soft place
    part, _, crop = crop_to_mask(image, masks, 32, 256)
    result = stitch(crop, 1 - part, feather, match_colors)
    assert result.shape == image.shape
    outside = (masks == 0).expand(2, -1, -1)
    assert torch.equal(result[outside], image[outside])
    assert (result != image)[..., :3][~outside].float().mean() > 0.8
    assert torch.equal(result[..., 3:], image[..., 3:])
    assert result.isfinite().all()


def test_an_untouched_part_comes_back_as_it_went():
    image, masks = picture(), mask((40, 40, 120, 100))
    part, _, crop = crop_to_mask(image, masks, 16, size=0)
    assert torch.equal(stitch(crop, part, 0, match_colors=False), image)
    assert torch.allclose(stitch(crop, part, 8, match_colors=True), image, atol=1e-6)


def test_the_seam_rises_inwards_and_the_mask_s_grays_are_kept():
    image, masks = torch.zeros(1, 200, 300, 3), mask((100, 60, 160, 120)) * 0.8
    _, _, crop = crop_to_mask(image, masks, 16, size=0)
    result = stitch(crop, torch.ones(1, crop.height, crop.width, 3), 3, match_colors=False)
    assert result[0, 90, 98:106, 0].tolist() == pytest.approx([0, 0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8])


def test_a_mask_that_touches_the_border_has_no_seam_there():
    image, masks = torch.zeros(1, 200, 300, 3), mask((0, 60, 60, 120))
    _, _, crop = crop_to_mask(image, masks, 16, size=0)
    assert crop.left == 0
    result = stitch(crop, torch.ones(1, crop.height, crop.width, 3), 8, match_colors=False)
    assert result[0, 90, 0, 0] == 1


def test_colors_are_matched_by_what_lies_around_the_mask():
    """The edit shifted brightness and contrast of the whole part; what it changed on purpose keeps its own color."""
    image = 0.3 + 0.3 * picture()
    masks = mask((100, 60, 160, 120))
    part, part_mask, crop = crop_to_mask(image, masks, 40, size=0)
    wanted = torch.where(part_mask[..., None] > 0, torch.tensor([0.7, 0.2, 0.4]), part)
    shifted = wanted * 0.9 + torch.tensor([0.05, -0.02, 0.03])
    plain, matched = (stitch(crop, shifted, 0, match) for match in (False, True))
    inside = masks[0] > 0
    assert (matched[0, inside] - torch.tensor([0.7, 0.2, 0.4])).abs().max() < 0.003
    assert (plain[0, inside] - torch.tensor([0.7, 0.2, 0.4])).abs().max() > 0.02


def test_colors_of_a_flat_surrounding_are_matched_by_a_shift():
    image, masks = torch.full((1, 200, 300, 3), 0.5), mask((100, 60, 160, 120))
    part, _, crop = crop_to_mask(image, masks, 40, size=0)
    assert torch.allclose(stitch(crop, part + 0.1, 0, match_colors=True), image, atol=1e-5)
    whole = mask((0, 0, 300, 200))  # nothing around it: left as it is
    part, _, crop = crop_to_mask(image, whole, 40, size=0)
    assert torch.allclose(stitch(crop, part + 0.1, 4, match_colors=True), image + 0.1, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_outside_is_untouched(dtype):
    image, masks = picture().to(dtype), mask((40, 40, 120, 100))
    part, _, crop = crop_to_mask(image, masks, 16, 128)
    result = stitch(crop, part, 4, match_colors=True)
    assert result.dtype == dtype
    assert torch.equal(result[masks == 0], image[masks == 0])
    assert result.isfinite().all()


def test_an_empty_mask_and_another_number_of_pictures_are_refused_in_a_sentence():
    with pytest.raises(ValueError, match="mask is empty, so there is nothing to crop to"):
        crop_to_mask(picture(), torch.zeros(1, 200, 300), 8, 256)
    part, _, crop = crop_to_mask(picture(3), mask((40, 40, 120, 100)), 16, 0)
    with pytest.raises(ValueError, match="image has 2 pictures, the crop was made of 3"):
        stitch(crop, part[:2], 8, match_colors=True)


def test_one_picture_takes_several_edits_of_it():
    image, masks = picture(), mask((40, 40, 120, 100))
    part, _, crop = crop_to_mask(image, masks, 16, 0)
    edits = torch.cat([part * share for share in (0.2, 0.6, 1.0)])
    together = stitch(crop, edits, 8, match_colors=False)
    for one, edit in zip(together, edits, strict=True):
        assert torch.equal(one, stitch(crop, edit[None], 8, match_colors=False)[0])


def test_a_mask_that_fills_its_box_is_feathered_where_the_picture_goes_on():
    image, masks = torch.full((1, 256, 256, 3), 0.2), torch.zeros(1, 256, 256)
    masks[:, 96:192, 160:] = 1  # up to the picture's right edge
    part, _, crop = crop_to_mask(image, masks, 0, 0)
    result = stitch(crop, torch.ones_like(part), 8, match_colors=False)[0, ..., 0]
    assert torch.all(result[140, 159:169].diff() > 0)
    assert torch.all(result[95:104, 220].diff() > 0)
    assert result[140, 255] == 1
