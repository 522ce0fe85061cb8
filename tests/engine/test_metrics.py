"""SSIM, PSNR and what is compared, against scikit-image and scipy."""

import math

import numpy as np
import pytest
import torch
from kontextkit.engine.metrics import comparison, pictures
from kontextkit.engine.metrics import ssim as ssim_module
from kontextkit.engine.metrics.comparison import INSIDE, OUTSIDE, compare, grade, regions
from kontextkit.engine.metrics.heat_map import STOPS, draw_heat_map
from kontextkit.engine.metrics.ssim import SCALE_WEIGHTS, luma, multi_scale_ssim, ssim
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def pair(size=(64, 64), noise=0.1, low=0.25, n=2):
    rng = np.random.default_rng(0)
    a = rng.random((n, 3, *size)).astype(np.float32) * 0.5 + low
    b = np.clip(a + rng.normal(0, noise, a.shape), 0, 1).astype(np.float32)
    return torch.from_numpy(a), torch.from_numpy(b)


def scikit_image_map(a, b):
    """(3, H - 10, W - 10) in float64."""
    _, whole = structural_similarity(
        a.double().numpy(), b.double().numpy(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        data_range=1.0, channel_axis=0, full=True,
    )  # fmt: skip
    return whole[:, 5:-5, 5:-5]


@pytest.mark.parametrize("size", [(11, 11), (32, 47), (64, 64)])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_ssim_is_scikit_images_to_nine_digits(size, noise):
    a, b = pair(size, noise)
    ours = ssim(a, b)
    assert ours.dtype == torch.float64
    for i in range(2):
        assert ours[i].item() == pytest.approx(scikit_image_map(a[i], b[i]).mean(), abs=1e-9)


def test_ssim_strip_by_strip_is_that_of_the_whole(monkeypatch):
    a, b = pair((61, 47))
    whole = ssim(a, b)
    monkeypatch.setattr(ssim_module, "STRIP", 20 * 47)
    assert ssim(a, b).tolist() == pytest.approx(whole.tolist(), abs=1e-14)


@pytest.mark.parametrize("low", [0.0, 0.49])
@pytest.mark.parametrize("noise", [0.0, 0.003, 0.3])
def test_ssim_in_a_cards_float32_is_scikit_images_too(monkeypatch, noise, low):
    monkeypatch.setattr(ssim_module, "_precise", lambda x: x.float())
    a, b = pair((64, 96), noise, low)
    flat = torch.full_like(a, 0.97), torch.full_like(a, 0.97) - (a - b).abs() / 30  # where variances are all but lost
    for one, other in ((a, b), flat):
        expected = scikit_image_map(one[0], other[0]).mean()
        assert ssim(one, other)[0].item() == pytest.approx(expected, abs=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", [False, True])
def test_ssim_on_a_card_is_scikit_images_whatever_tf32_says(tf32):
    a, b = pair((300, 200))
    before = torch.backends.cuda.matmul.allow_tf32  # no attribute that monkeypatch could put back
    try:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        with torch.backends.cudnn.flags(allow_tf32=tf32):
            on_card = ssim(a.cuda(), b.cuda())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert on_card.dtype == torch.float32
    assert on_card[1].item() == pytest.approx(scikit_image_map(a[1], b[1]).mean(), abs=2e-5)


def test_ssim_can_be_learnt_from():
    a = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    b = (a * 0.5).requires_grad_()
    ssim(a, b).mean().backward()
    assert b.grad.isfinite().all()
    assert b.grad.abs().sum() > 0


def test_a_picture_is_exactly_like_itself():
    a, _ = pair()
    assert ssim(a, a).tolist() == [1.0, 1.0]
    assert multi_scale_ssim(*pair((180, 180), 0.0)).tolist() == [1.0, 1.0]
    (row, _) = compare(a, a).rows
    assert (row.ssim, row.psnr, row.difference, grade(row.ssim)) == (1.0, math.inf, 0.0, "identical")


def test_multi_scale_ssim_is_scipys_gaussian_through_the_five_scales():
    a, b = pair((176, 200), 0.15, n=1)

    def blur(x):
        return ndimage.gaussian_filter(x, 1.5, radius=5)[5:-5, 5:-5]

    channels = []
    for x, y in zip(a[0].double().numpy(), b[0].double().numpy(), strict=True):
        value = 1.0
        for i, weight in enumerate(SCALE_WEIGHTS):
            mean_x, mean_y = blur(x), blur(y)
            structure = (2 * (blur(x * y) - mean_x * mean_y) + 9e-4) / (
                blur(x * x) - mean_x**2 + blur(y * y) - mean_y**2 + 9e-4
            )
            luminance = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
            value *= (structure * luminance if i == 4 else structure).mean() ** weight
            x, y = (p[: len(p) // 2 * 2, : p.shape[1] // 2 * 2] for p in (x, y))
            x, y = (p.reshape(len(p) // 2, 2, -1, 2).mean((1, 3)) for p in (x, y))
        channels.append(value)
    assert multi_scale_ssim(a, b).item() == pytest.approx(np.mean(channels), abs=1e-9)
    assert compare(a, b, multi_scale=True).ssim == pytest.approx(np.mean(channels), abs=1e-9)


def test_luma_is_what_pillow_calls_gray():
    a, b = pair()
    assert luma(a)[0, 0, 3, 4].item() == pytest.approx(float(np.dot(a[0, :, 3, 4], [0.299, 0.587, 0.114])), abs=1e-7)
    expected = scikit_image_map(luma(a)[0], luma(b)[0]).mean()
    assert compare(a, b, luma_only=True).rows[0].ssim == pytest.approx(expected, abs=1e-9)


def test_psnr_and_difference_are_scikit_images_and_numpys():
    a, b = pair(noise=0.03)
    row = compare(a, b).rows[1]
    assert row.psnr == pytest.approx(peak_signal_noise_ratio(a[1].double().numpy(), b[1].double().numpy()), abs=1e-5)
    assert row.difference == pytest.approx(np.abs(a[1] - b[1]).double().mean().item(), abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_in_full_precision(dtype):
    a, b = (x.to(dtype) for x in pair())
    assert ssim(a, b)[0].item() == pytest.approx(scikit_image_map(a[0], b[0]).mean(), abs=1e-9)
    row = compare(a, b).rows[0]
    assert row.psnr == pytest.approx(peak_signal_noise_ratio(a[0].double().numpy(), b[0].double().numpy()), abs=1e-5)


def test_outside_a_mask_nothing_of_the_inside_counts_and_the_other_way_round():
    a, b = pair(noise=0.2)
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:40, 10:44] = 1
    for region, other in ((OUTSIDE, INSIDE), (INSIDE, OUTSIDE)):
        kept = torch.where((mask[:, None] > 0) == (region == INSIDE), a, b)
        same, changed = compare(a, kept, mask=mask, region=region), compare(a, kept, mask=mask, region=other)
        assert (same.ssim, same.rows[0].psnr, same.rows[1].difference) == (1.0, math.inf, 0.0)
        assert changed.ssim < 0.9
    soft = ndimage.gaussian_filter(mask.numpy(), (0, 2, 2))  # what it blends lies neither outside nor wholly inside
    blended = torch.lerp(a, b, torch.from_numpy(soft)[:, None])
    assert compare(a, blended, mask=torch.from_numpy(soft), region=OUTSIDE).ssim == 1.0
    expected = scikit_image_map(a[0], b[0])[:, 20:30, 10:34].mean()  # windows around pixels 25-34 and 15-38
    assert compare(a, b, mask=mask, region=INSIDE).rows[0].ssim == pytest.approx(expected, abs=1e-9)
    difference = (a - b)[0, :, 20:40, 10:44].abs().double().mean().item()
    assert compare(a, b, mask=mask, region=INSIDE).rows[0].difference == pytest.approx(difference, abs=1e-8)


def test_regions_are_the_cells_of_a_grid_or_the_parts_of_a_mask():
    a, b = pair(noise=0.2)
    windows = compare(a, b).map
    cells = regions(windows[0])
    assert [name for name, _ in cells[:4:3]] == ["row 1, column 1", "row 2, column 1"]
    assert cells[0][1] == pytest.approx(windows[0, :18, :18].mean().item())
    assert regions(torch.ones(1, 1)) == [("row 1, column 1", 1.0)]
    assert regions(torch.ones(1, 1), torch.zeros(11, 11)) == [("the rest", 1.0)]
    mask = torch.zeros(64, 64)
    mask[10:20, 10:20] = mask[20:22, 20:30] = 1  # touch at a corner: one part
    mask[40:60, 30:50] = 1
    (largest, value), (second, _), (rest, _) = regions(windows[0], mask)
    assert largest == "part at x 30-49, y 40-58"  # windows' middles end 5 pixels before the border
    assert value == pytest.approx(windows[0, 35:54, 25:45].mean().item())
    assert (second, rest) == ("part at x 10-29, y 10-21", "the rest")


def test_the_worst_pair_is_named_by_its_index():
    a, b = pair(n=3)
    b[0], b[2] = a[0], (a[2] + b[2]) / 2
    found = compare(a, b)
    assert found.worst == 1
    assert found.ssim == pytest.approx(ssim(a, b).mean().item())


def test_grades_are_the_guides_bands():
    values = (1.0, 0.9999, 0.95, 0.9499, 0.9, 0.85, 0.8, 0.7999, -1.0)
    names = ["identical", "excellent", "excellent", "very good", "very good", "good", "acceptable", "poor", "poor"]
    assert [grade(value) for value in values] == names


def test_what_cannot_be_compared_is_refused_in_a_sentence():
    a, b = pair((10, 40))
    with pytest.raises(ValueError, match="at least 11 pixels a side, these pictures have 40x10"):
        compare(a, b)
    with pytest.raises(ValueError, match="at least 176 pixels a side, these pictures have 64x64"):
        compare(*pair(), multi_scale=True)
    with pytest.raises(ValueError, match="inside the mask needs a mask"):
        compare(*pair(), region=INSIDE)
    empty = torch.stack((torch.ones(64, 64), torch.zeros(64, 64)))
    with pytest.raises(ValueError, match="of picture 1 lies inside the mask: take a larger mask"):
        compare(*pair(), region=INSIDE, mask=empty)
    with pytest.raises(ValueError, match="of picture 0 lies outside the mask: take a smaller mask"):
        compare(*pair(), region=OUTSIDE, mask=empty)


def image(size=(32, 40), n=2, channels=3):
    return torch.rand(n, *size, channels, generator=torch.Generator().manual_seed(1))


def test_pictures_are_made_ready_and_every_change_is_said():
    a, alpha = image(), image(channels=4)
    assert pictures.ready_pair(a, a)[2] == []
    one, other, said = pictures.ready_pair(a, alpha)
    assert one.shape == other.shape == (2, 3, 32, 40)
    assert said == ["image_b has an alpha channel, which is left out."]
    _, other, said = pictures.ready_pair(a, a * 3 - 1)
    assert (other.min(), other.max()) == (0, 1)
    assert "values outside 0-1 are cut off" in said[0]
    assert pictures.ready_pair(a, image(n=1, channels=1))[1].shape == (2, 3, 32, 40)
    _, other, said = pictures.ready_pair(a, image((64, 80)), pictures.RESIZE)
    assert other.shape == (2, 3, 32, 40)
    assert said == ["image_b was resized from 80x64 to 40x32, which itself changes SSIM."]


def test_pictures_and_masks_that_cannot_be_used_are_refused_in_a_sentence():
    a = image()
    for bad, words in [
        (image((32, 41)), "image_a has 40x32 pixels, image_b 41x32; .* set size_mismatch to 'resize image_b'"),
        (image(n=3), "image_a has 2 pictures, image_b 3"),
        (image(channels=2), r"image_b has the shape \[2, 32, 40, 2\], expected"),
        (torch.where(a > 0.99, torch.nan, a), r"image_b: \d+ values are NaN or infinite, the first in number 0"),
        (torch.where(a > 0.99, torch.inf, a).half(), r"image_b: \d+ values are NaN or infinite"),
    ]:
        with pytest.raises(ValueError, match=words):
            pictures.ready_pair(a, bad)
    like = a.movedim(-1, 1)
    for mask, words in [
        (torch.zeros(2, 32, 41), "mask has 41x32 pixels, the picture 40x32"),
        (torch.zeros(3, 32, 40), "there are 3 masks for 2 pictures"),
        (torch.zeros(2, 0, 40), r"mask has the shape \[2, 0, 40\]"),
        (torch.full((1, 32, 40), torch.nan), "mask: 1280 values are NaN"),
    ]:
        with pytest.raises(ValueError, match=words):
            pictures.ready_mask(mask, [], like)
    said = []
    assert pictures.ready_mask(torch.full((32, 40), 1.5), said, like).max() == 1
    assert said[0].startswith("mask goes from 1.5 to 1.5")


def test_a_heat_map_shows_each_window_in_the_color_that_its_bar_gives_the_value():
    windows = torch.ones(2, 54, 70)
    windows[1, 20, 30], windows[1, 40, 60] = 0.9, -0.5
    picture = draw_heat_map(windows)
    assert picture.shape == (2, 64, 80 + 56, 3)
    colors = dict(STOPS)
    for (y, x), value in {(25, 35): 0.9, (45, 65): 0.0, (0, 0): 1.0}.items():
        assert picture[1, y, x].tolist() == pytest.approx(colors[value], abs=1e-6)
    bar = picture[0, :, 80 + comparison.RADIUS + 3]
    assert all((bar - torch.tensor(color)).abs().amax(-1).min() < 0.02 for color in colors.values())
    assert draw_heat_map(torch.ones(1, 1, 1)).shape == (1, 11, 11 + 56, 3)
    assert draw_heat_map(torch.ones(1, 1014, 990)).shape == (1, 1024, 1000 + 4 * 56, 3)
