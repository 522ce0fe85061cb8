"""Compare Images (SSIM) as ComfyUI runs it."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import requests
import torch
from kontextkit.devtools.server import PromptError
from PIL import Image


@pytest.fixture
def node(comfyui):
    """It without its hidden inputs, which previews would be saved with."""
    from kontextkit.nodes.compare_ssim import KontextCompareSSIM

    return KontextCompareSSIM


@pytest.fixture
def compared(node, tmp_path, monkeypatch):
    """compare(...) -> (outputs, ui), its previews in a folder of their own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    monkeypatch.setattr(node, "hidden", SimpleNamespace(prompt=None, extra_pnginfo=None))

    def compare(*args, **more):
        found = node.execute(*args, **more)
        return found.result, found.ui

    return compare


def picture(n=1, size=(48, 64), channels=3):
    return torch.rand(n, *size, channels, generator=torch.Generator().manual_seed(0))


def test_the_promised_sockets_come_first_and_everything_is_explained(node):
    schema = node.define_schema()
    assert [each.id for each in schema.inputs[:2]] == ["image_a", "image_b"]
    assert [each.display_name for each in schema.outputs] == ["ssim", "grade", "passed", "map", "report"]
    assert all(each.optional for each in schema.inputs[3:])
    assert all(len(each.tooltip) > 25 for each in [*schema.inputs, *schema.outputs])


def test_a_pair_is_valued_graded_and_shown(compared, tmp_path):
    a = picture()
    (ssim, grade, passed, heat, report), ui = compared(a, (a * 0.98), 0.95)
    assert 0.95 < ssim < 1
    assert (grade, passed) == ("excellent", True)
    assert heat.shape == (1, 48, 64 + 56, 3)
    lines = report.splitlines()
    assert lines[0].startswith(f"SSIM {ssim:.4f} (excellent), PSNR ")
    assert lines[0].endswith("Passed: the threshold is 0.95.")
    assert lines[1:] == [
        "SSIM of RGB, whole picture.",
        "LPIPS: not computed, the package lpips is not installed (pip install lpips).",
        "CLIP similarity: not computed, no clip_vision is connected (Load CLIP Vision).",
    ]
    (one,), (other,) = ui["a_images"], ui["b_images"]
    for shown, image in ((one, a), (other, a * 0.98)):
        saved = np.asarray(Image.open(tmp_path / shown["filename"]))
        assert np.array_equal(saved, (image[0] * 255).to(torch.uint8).numpy())


def test_a_batch_has_a_row_each_and_fails_by_its_worst(compared):
    a = picture(3)
    b = a.clone()
    b[1] = 1 - b[1]
    (ssim, grade, passed, heat, report), ui = compared(a, b, 0.6, by_region=True)
    assert (grade, passed, len(heat), len(ui["b_images"])) == ("poor", False, 3, 3)
    assert 0.3 < ssim < 0.4
    lines = report.splitlines()
    assert "Failed: index 1 is below the threshold of 0.6." in lines[0]
    assert lines[2].startswith(f"3 pairs: mean {ssim:.4f}, minimum -0.")
    assert lines[2].endswith("(index 1).")
    assert [line.split(":")[0] for line in lines[3:6]] == ["  0", "  1", "  2"]
    assert "identical), PSNR infinite" in lines[3]
    assert "SSIM by region of index 1, the worst:" in lines
    assert sum(line.startswith("  row ") for line in lines) == 9


def test_every_option_reaches_the_measure(compared):
    a, mask = picture(size=(180, 200)), torch.zeros(1, 180, 200)
    mask[:, 40:80, 40:90] = 1
    b = torch.where(mask[..., None] > 0, 1 - a, a)
    values = {
        name: compared(a, b, 0.95, mask=mask, **more)[0]
        for name, more in {
            "whole": {},
            "inside": {"region": "inside the mask"},
            "outside": {"region": "outside the mask", "by_region": True},
            "luma": {"channels": "luma"},
            "scales": {"multi_scale": True},
        }.items()
    }
    ssim = {name: value[0] for name, value in values.items()}
    assert ssim["inside"] < 0 < ssim["whole"] < ssim["outside"] == 1
    assert len(set(ssim.values())) == 5
    assert "part at x 40-89, y 40-79: -" in values["outside"][4]
    assert "SSIM of RGB, multi-scale, whole picture." in values["scales"][4]


def test_clip_and_lpips_are_computed_where_they_are_there(compared, monkeypatch, tmp_path):
    import sys

    a = picture(2)
    seen = SimpleNamespace(encode_image=lambda image: {"image_embeds": image.flatten(1)[:, :8]})
    report = compared(a, a, 0.95, clip_vision=seen)[0][4]
    assert "CLIP similarity by index: 1.0000, 1.0000." in report

    class LPIPS(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, x, y):
            assert (x.min() < -0.9, x.max() > 0.9) == (True, True)
            return (x - y).abs().mean()[None, None, None, None]

    from kontextkit.bridge import perceptual

    monkeypatch.setattr(perceptual, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=LPIPS))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "LPIPS: not computed, its network's weights are not in" in compared(a, a, 0.95)[0][4]
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / perceptual.ALEXNET).touch()
    assert "LPIPS by index: 0.0000, 0.0000." in compared(a, a, 0.95)[0][4]


@pytest.mark.parametrize(
    ("b", "more", "words"),
    [
        (picture(size=(48, 65)), {}, "image_a has 64x48 pixels, image_b 65x48"),
        (picture() / 0, {}, "image_b: .* values are NaN or infinite"),
        (picture(), {"region": "inside the mask"}, "needs a mask; connect one"),
        (picture(), {"multi_scale": True}, "at least 176 pixels"),
        (picture(), {"mask": torch.zeros(1, 40, 64)}, "mask has 64x40 pixels, the picture 64x48"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(compared, b, more, words):
    with pytest.raises(ValueError, match=words):
        compared(picture(), b, 0.95, **more)


def test_other_sizes_are_resized_by_choice_and_half_precision_alpha_and_gray_are_taken(compared):
    a = picture()
    report = compared(a, picture(size=(96, 128)), 0.95, size_mismatch="resize image_b")[0][4]
    assert report.startswith("image_b was resized from 128x96 to 64x48")
    for b in (a.half(), a.bfloat16(), torch.cat((a, a[..., :1]), -1), a[..., :1]):
        (ssim, _, _, heat, _), _ = compared(a, b, 0.95)
        assert 0 < ssim <= 1
        assert heat.isfinite().all()


def workflow(color_b, side_b=64):
    def image(color, side=64):
        return {"class_type": "EmptyImage", "inputs": {"width": side, "height": 64, "batch_size": 1, "color": color}}

    links = {"image_a": ["1", 0], "image_b": ["2", 0], "threshold": 0.95}
    return {
        "1": image(0x808080),
        "2": image(color_b, side_b),
        "3": {"class_type": "KontextCompareSSIM", "inputs": links},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 3]}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 4]}},
    }


SHOWN = {"a_images": 1, "b_images": 1, "images": 1, "kontext_badge": 1}


def test_a_server_draws_the_map_and_explains_a_wrong_size(server):
    under_the_node, drawn = (np.asarray(Image.open(io.BytesIO(png))) for png in server.run(workflow(0x848484)))
    assert drawn.shape == (64, 64 + 56, 3)
    assert np.array_equal(under_the_node, drawn)
    history = requests.get(f"{server.url}/history", timeout=30).json()
    outputs = list(history.values())[-1]["outputs"]
    assert outputs["5"]["text"][0].startswith("SSIM 0.99")
    assert {key: len(value) for key, value in outputs["3"].items()} == SHOWN
    with pytest.raises(PromptError, match="image_a has 64x64 pixels, image_b 80x64"):
        server.run(workflow(0x848484, 80))
