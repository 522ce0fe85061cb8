"""A mask's measures against masks of known width, scikit-image and scipy; its grade, its cleaning, its overlay."""

import re

import numpy as np
import pytest
import torch
from kontextkit.engine.metrics.mask_batch import check
from kontextkit.engine.metrics.mask_cleaning import Cleaning, clean
from kontextkit.engine.metrics.mask_grade import judge
from kontextkit.engine.metrics.mask_measures import contour_length, measure
from kontextkit.engine.metrics.mask_overlay import CONTOUR, HOLE, ISLAND, draw_overlay
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.measure import find_contours

Y, X = np.mgrid[0:256, 0:256].astype(np.float32)
DISTANCES = {  # from the edge, positive inside
    "circle": 60 - np.hypot(X - 128, Y - 120),
    "small circle": 20 - np.hypot(X - 128, Y - 120),
    "straight edge": 100.3 - X,
    "slanted edge": (X - 128) * np.cos(0.4) + (Y - 128) * np.sin(0.4),
    "box": np.minimum(60 - abs(X - 128), 50 - abs(Y - 128)),
}


def linear(distance, width):
    return np.clip(0.5 + distance / width, 0, 1).astype(np.float32)


def sharp(distance=DISTANCES["circle"]):
    return (distance > 0).astype(np.float32)


def blurred(distance, sigma):
    return np.clip(ndimage.gaussian_filter(sharp(distance), sigma), 0, 1)


@pytest.mark.parametrize("shape", DISTANCES)
@pytest.mark.parametrize("width", [1, 2, 5, 8, 10, 15, 30])
def test_a_linear_feather_is_measured_to_a_pixel(shape, width):
    assert measure(linear(DISTANCES[shape], width)).feather_px == pytest.approx(width, abs=1)


@pytest.mark.parametrize("shape", DISTANCES)
@pytest.mark.parametrize("sigma", [1, 2, 3, 5])
def test_a_gaussian_feather_is_measured_to_a_pixel(shape, sigma):
    """Between 5 % and 95 % lie 3.29 sigma, as much as in a linear ramp 3.66 sigma wide."""
    m = measure(blurred(DISTANCES[shape], sigma))
    assert m.feather_px == pytest.approx(2 * 1.6449 * sigma / 0.9, abs=1)
    assert m.feather_by_distance_px == pytest.approx(m.feather_px, abs=1)


@pytest.mark.parametrize("shape", DISTANCES)
def test_a_sharp_mask_has_no_feather(shape):
    m = measure(sharp(DISTANCES[shape]))
    assert (m.feather_px, m.feather_by_distance_px, m.soft_fraction) == (0, 0, 0)
    assert (m.contrast, m.separability) == (1, 1)
    assert m.gradients == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("shape", DISTANCES)
@pytest.mark.parametrize("level", [0.3, 0.5])
def test_a_contour_is_as_long_as_scikit_images(shape, level):
    mask = linear(DISTANCES[shape], 9)
    mask[40:60:3, 5:200:7] = 0.7  # with saddles, where lines may be joined either way
    mask[41:60:3, 6:200:7] = 0.7
    lines = find_contours(mask, level)
    expected = sum(np.hypot(*np.diff(line, axis=0).T).sum() for line in lines)
    assert contour_length(mask, level) == pytest.approx(expected, rel=0.03)
    assert contour_length(linear(DISTANCES["circle"], 9)) == pytest.approx(2 * np.pi * 60, rel=0.001)


def test_the_levels_are_split_where_scikit_image_splits_them():
    rng = np.random.default_rng(0)
    mask = np.where(sharp() > 0, rng.normal(0.7, 0.08, X.shape), rng.normal(0.3, 0.1, X.shape)).clip(0, 1)
    m = measure(mask.astype(np.float32))
    threshold = threshold_otsu((mask * 255).round().astype(np.uint8)) / 255
    above = mask > threshold + 0.5 / 255
    assert m.contrast == pytest.approx(mask[above].mean() - mask[~above].mean(), abs=1e-3)
    share = above.mean()
    assert m.separability == pytest.approx(share * (1 - share) * m.contrast**2 / mask.var(), abs=1e-3)


def test_parts_and_holes_are_counted_as_they_are_connected():
    mask = sharp()
    mask[100:104, 110:115] = 0
    mask[104, 115] = 0  # touches the hole at a corner only: another hole
    mask[10:14, 10:14] = mask[14, 14] = 1  # touches at a corner: the same part
    mask[0:5, 200:203] = 1
    m = measure(mask)
    assert m.parts == (int(sharp().sum()) - 21, 17, 15)
    assert m.islands == (17, 15)
    assert m.holes == m.small_holes == (20, 1)
    assert m.borders == ("top",)
    assert m.box == (10, 0, 203, 180)
    assert m.coverage == pytest.approx(mask.mean())


def test_a_ring_s_hole_is_no_slip_nor_is_a_second_object():
    ring = sharp(np.minimum(60 - np.hypot(X - 128, Y - 128), np.hypot(X - 128, Y - 128) - 40))
    two = sharp(np.maximum(DISTANCES["small circle"], 20 - np.hypot(X - 40, Y - 40)))
    for mask in (ring, two):
        m = measure(mask)
        assert (len(m.holes), len(m.parts)) in ((1, 1), (0, 2))
        assert judge(m).score == 1


def test_tokens_are_counted_where_they_are_masked_wholly():
    mask = np.zeros((64, 72), np.float32)
    mask[16:48, 16:40] = 1  # two tokens and two halves
    assert measure(mask).token_share == pytest.approx(2 * 256 / mask.sum())


GRADES = {
    "high": [sharp(), linear(DISTANCES["circle"], 2), sharp(DISTANCES["slanted edge"]), linear(DISTANCES["box"], 4)],
    "standard": [linear(distance, width) for distance in DISTANCES.values() for width in (6, 8, 10)],
    "poor": [
        *(linear(DISTANCES[shape], width) for shape in ("circle", "box") for width in (16, 30)),
        blurred(DISTANCES["circle"], 8),
        sharp() * 0.55,
        sharp() * 0.4 + 0.3,
        sharp() * 0.3,
        np.zeros_like(X),
        np.ones_like(X),
        np.random.default_rng(0).random(X.shape, np.float32),
    ],
}


@pytest.mark.parametrize("grade", GRADES)
def test_masks_are_graded_as_in_the_guide(grade):
    for mask in GRADES[grade]:
        quality = judge(measure(mask))
        assert quality.grade == grade, quality
        assert 0 <= quality.score <= 1
        assert grade == "high" or quality.findings


FINDINGS = {  # mask -> what is said, what to do
    "wide": (linear(DISTANCES["circle"], 20), "fades over 20 pixels, which blurs the seam. Set threshold to 0.5"),
    "soft": (linear(DISTANCES["circle"], 8), "fades over 8 pixels, which blends well"),
    "gray inside": (np.where(DISTANCES["circle"] > 0, 0.65, 0).astype(np.float32), "gray away from the edge"),
    "low": (sharp() * 0.35 + 0.3, r"Low contrast: on and off are 0.35 apart \(values from 0.30 to 0.65\)"),
    "faint": (sharp() * 0.3, "No value reaches 0.5, the highest is 0.30. Set threshold to 0.15"),
    "empty": (np.zeros_like(X), "The mask is empty"),
    "full": (np.ones_like(X), "covers the whole picture"),
    "inverted": (1 - sharp(), "most of its border are masked. .* invert the mask"),
    "thin": (sharp(5 - abs(X - Y)), "Nowhere does the mask cover one of the 16x16 squares"),
    "odd": (sharp()[:250], r"The sides \(256x250\) are no multiples of 16"),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_what_is_wrong_is_said_with_what_to_do(name):
    mask, words = FINDINGS[name]
    checked = check(torch.from_numpy(mask), None, Cleaning())
    for text in (checked.report, checked.summary):
        assert re.search(words, text), text


def test_a_sharp_mask_is_told_nothing():
    assert judge(measure(sharp())).findings == ()


def test_the_fix_that_a_finding_names_mends_it():
    mask = linear(DISTANCES["circle"], 20)
    mask[100:104, 110:115] = 0
    mask[10:14, 10:14] = 1
    said = "\n".join(judge(measure(mask)).findings)
    for fix in ("Set threshold to 0.5 and feather to 4", "drop_islands to 17", "fill_holes to 21"):
        assert fix in said
    quality = judge(measure(clean(mask, Cleaning(0.5, fill_holes=21, drop_islands=17, feather=4))))
    assert (quality.grade, quality.findings) == ("high", ())


def test_cleaning_takes_away_what_is_smaller_and_nothing_else():
    mask = linear(DISTANCES["circle"], 6)
    islands, holes = mask.copy(), mask.copy()
    islands[10:14, 10:14] = 1
    islands[9, 9:15] = 0.3  # its soft edge goes with it
    holes[100:104, 110:115] = 0
    assert np.array_equal(clean(islands, Cleaning(drop_islands=17)), mask)
    assert np.array_equal(clean(islands, Cleaning(drop_islands=16)), islands)
    assert np.array_equal(clean(holes, Cleaning(fill_holes=21)), mask)
    assert np.array_equal(clean(holes, Cleaning(fill_holes=20)), holes)
    assert np.array_equal(clean(mask, Cleaning()), mask)
    assert np.array_equal(clean(mask, Cleaning(threshold=0.3)), (mask >= 0.3).astype(np.float32))


@pytest.mark.parametrize("grow", [-7, -1, 1, 12])
def test_growing_is_dilation_by_a_disk_and_shrinking_erosion(grow):
    y, x = np.mgrid[-13:14, -13:14]
    disk = np.hypot(x, y) <= abs(grow) + 0.5  # the edge lies half a pixel beyond the middles
    box = sharp(DISTANCES["box"])
    expected = (ndimage.binary_dilation if grow > 0 else ndimage.binary_erosion)(box, disk)
    assert np.array_equal(clean(box, Cleaning(grow=grow)), expected)


@pytest.mark.parametrize("feather", [3, 8, 20])
@pytest.mark.parametrize("grow", [0, 5])
def test_a_feather_has_the_width_that_was_chosen(feather, grow):
    m = measure(clean(sharp(), Cleaning(grow=grow, feather=feather)))
    assert m.feather_px == pytest.approx(feather, abs=1)
    assert m.coverage * 256**2 == pytest.approx(np.pi * (60 + grow) ** 2, rel=0.01)


def test_an_empty_and_a_full_mask_are_cleaned_into_themselves():
    for mask in (np.zeros_like(X), np.ones_like(X)):
        everything = Cleaning(0.5, 10, 10, 5, 8)
        assert np.array_equal(clean(mask, everything), mask)
        assert np.array_equal(clean(mask[:64, :64], Cleaning(grow=100)), mask[:64, :64])


def test_the_overlay_shows_edge_islands_and_holes_in_their_colors():
    mask = sharp()
    mask[100:104, 110:115] = 0
    mask[10:14, 10:14] = 1
    shown = draw_overlay(mask, measure(mask), np.full((256, 256, 3), 0.5, np.float32))
    assert shown[12, 12].tolist() == pytest.approx(ISLAND)
    assert shown[102, 112].tolist() == pytest.approx(HOLE)
    assert shown[120, 187].tolist() == pytest.approx(CONTOUR)
    assert shown[120, 120].tolist() == pytest.approx([0.4 + 0.35 * 0.6] * 3)
    assert shown[200, 20].tolist() == pytest.approx([0.4] * 3)
    assert (shown.min() >= 0, shown.max() <= 1) == (True, True)


def test_a_batch_has_a_line_for_each_and_is_graded_by_its_worst():
    masks = torch.from_numpy(np.stack([sharp(), linear(DISTANCES["circle"], 8), sharp(), np.zeros_like(X)]))
    done = []
    checked = check(masks, torch.rand(4, 256, 256, 3), Cleaning(feather=2), lambda: done.append(1))
    assert (checked.grade, checked.score, len(done)) == ("poor", 0.0, 4)
    assert checked.mask.shape == (4, 256, 256)
    assert checked.overlay.shape == (4, 256, 256, 3)
    lines = checked.report.splitlines()
    assert lines[0] == "4 masks; the worst, index 3: poor, score 0.00."
    assert [line.split(",")[0] for line in lines[-4:]] == ["  0: high", "  1: standard", "  2: high", "  3: poor"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_shapes_and_values_give_finite_results(dtype):
    mask = torch.from_numpy(linear(DISTANCES["circle"], 8))
    checked = check((mask * 1.2 - 0.1)[None, None].to(dtype), None, Cleaning())
    assert "mask goes from -0.1" in checked.summary
    assert checked.mask.dtype == torch.float32
    assert (checked.mask.min(), checked.mask.max()) == (0, 1)
    assert "nan" not in checked.report
    for size in ((1, 1), (3, 200), (10, 10)):
        assert "nan" not in check(torch.full(size, 0.7), None, Cleaning(grow=1, feather=3)).report


def test_a_picture_of_another_size_or_number_is_said_and_left_out():
    mask = torch.from_numpy(sharp())
    checked = check(mask, torch.rand(1, 128, 200, 3), Cleaning())
    assert "The mask has 256x256 pixels, the picture 200x128" in checked.summary
    assert checked.overlay.shape == (1, 256, 256, 3)
    assert "1 masks and 3 pictures" in check(mask, torch.rand(3, 256, 256, 4), Cleaning()).summary


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.full((1, 20, 20), torch.nan), "mask: 400 values are NaN or infinite"),
        (torch.rand(1, 20, 20, 4), r"mask has the shape \[1, 20, 20, 4\], expected \(batch, height, width\)"),
        (torch.zeros(0, 20, 20), r"mask has the shape \[0, 20, 20\]"),
    ],
)
def test_a_mask_that_cannot_be_measured_is_refused_in_a_sentence(mask, words):
    with pytest.raises(ValueError, match=words):
        check(mask, None, Cleaning())
