"""Masked edits on a real server: outside the mask nothing changes, in full resolution, with soft masks."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from kontextkit.devtools.server import PromptError
from kontextkit.devtools.stand_ins import api_with_stand_ins
from PIL import Image

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"


def workflow(name, steps=4):
    return api_with_stand_ins(json.loads((WORKFLOWS / f"{name}.json").read_text()), steps)


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def report_of(server, wish):
    """The report of the comparison in a workflow that ran last."""
    (compare,) = (name for name, node in wish.items() if node["class_type"] == "KontextCompareSSIM")
    wish = wish | {"report": {"class_type": "PreviewAny", "inputs": {"source": [compare, 4]}}}
    server.run(wish)
    outputs = list(requests.get(f"{server.url}/history", timeout=30).json().values())[-1]["outputs"]
    return outputs["report"]["text"][0]


def test_an_edit_in_a_mask_leaves_every_pixel_outside_as_it_was(server):
    wish = workflow("kontext_inpaint", 8)
    wish["drawn"] = {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}
    _overlay, result, _map, before = (opened(png) for png in server.run(wish))
    inside = np.zeros((256, 256), bool)
    inside[30:122, 26:118] = True  # the mask is 88x88 at x 28, y 32; its edge fades over 4 pixels, 2 of them outside
    assert np.array_equal(result[~inside], before[~inside])
    blue, green = before[75, 70].astype(int), result[75, 70].astype(int)
    assert blue[2] > 150 > blue[1]
    assert green[1] > 110 > green[2]
    assert report_of(server, wish).startswith("SSIM 1.0000 (identical), PSNR infinite (no pixel differs)")


def test_a_crop_is_edited_and_put_back_with_every_pixel_outside_as_it_was(server):
    wish = workflow("kontext_inpaint_crop", 8)
    _overlay, result, _map = (opened(png) for png in server.run(wish))
    before = np.asarray(Image.open(server.base / "input" / "example.png"))
    inside = np.zeros((256, 256), bool)
    inside[108:216, 28:136] = True  # the mask is 100x100 at x 32, y 112; its edge fades over 8 pixels
    assert np.array_equal(result[~inside], before[..., :3][~inside])
    assert result[162, 82, 2] > 150 > result[162, 82, 0]  # the circle was red
    assert report_of(server, wish).startswith("SSIM 1.0000 (identical)")


def test_a_picture_without_a_painted_mask_is_told_to_paint_one(server):
    Image.new("RGB", (256, 256)).save(server.base / "input" / "unpainted.png")
    wish = workflow("kontext_inpaint_crop")
    wish["4"]["inputs"]["image"] = "unpainted.png"
    with pytest.raises(PromptError, match="mask is empty, so there is nothing to crop to; paint what should change"):
        server.run(wish)


@pytest.fixture(scope="module")
def demo(comfyui):
    """edit(mask, change) -> latents of four steps from a drawn picture, and its own latents."""
    import node_helpers
    from kontextkit.bridge.demo import load_demo

    import nodes

    model, clip, vae = load_demo("Q8_0")
    drawn = torch.zeros(1, 128, 128, 3)
    drawn[:, 30:90, 40:80, 0] = 1
    with torch.inference_mode():
        latents = vae.encode(drawn)
        positive = nodes.CLIPTextEncode().encode(clip, "a blue background")[0]
        positive = node_helpers.conditioning_set_values(positive, {"reference_latents": [latents]})

    def edit(mask, change=lambda model: model):
        how = (4, 1.0, "euler", "simple", positive, positive, {"samples": latents, "noise_mask": mask})
        with torch.inference_mode():
            return nodes.common_ksampler(change(model), 1, *how)[0]["samples"], latents

    return edit


def test_differential_diffusion_lets_a_soft_mask_change_in_steps(demo):
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    soft = torch.linspace(1.3, -0.3, 128).clamp(0, 1).expand(1, 128, 128)

    def differential(model):
        return DifferentialDiffusion.execute(model).result[0]

    made, before = demo(soft, differential)
    plain, _ = demo(soft)
    assert made.isfinite().all()
    assert (made - plain).abs().max() > 0.1
    change = (made - before).abs().mean(dim=(0, 1, 2))  # by column, from on to off
    assert change[-2:].max() < 1e-4 < 0.1 < change[:4].min()
    assert change[:4].mean() > change[6:10].mean() > change[-4:].mean()
    sharp = (soft > 0.5).float()
    assert torch.allclose(demo(sharp, differential)[0], demo(sharp)[0], atol=1e-5)


@pytest.fixture
def crop_nodes(comfyui):
    from kontextkit.nodes.crop_and_stitch import KontextCropToMask, KontextStitch

    return KontextCropToMask, KontextStitch


def test_crop_and_stitch_explain_their_sockets(crop_nodes):
    crop, stitch = (node.define_schema() for node in crop_nodes)
    assert [each.id for each in crop.inputs] == ["image", "mask", "context", "size"]
    assert [each.id for each in stitch.inputs] == ["stitch", "image", "feather", "match_colors"]
    assert all(len(each.tooltip) > 18 for schema in (crop, stitch) for each in [*schema.inputs, *schema.outputs])
    assert crop.outputs[2].io_type == stitch.inputs[0].io_type == "KONTEXT_STITCH"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_and_alpha_pictures_come_back_whole(crop_nodes, channels):
    crop, stitch = crop_nodes
    image, mask = torch.rand(2, 100, 90, channels), torch.zeros(1, 100, 90)
    mask[:, 30:60, 20:50] = 1
    part, part_mask, place = crop.execute(image, mask, 8, 128).result
    assert part.shape[3] == 3
    assert part.shape[1:3] == part_mask.shape[1:]
    (result,) = stitch.execute(place, torch.cat((part, part[..., :1]), -1), 4, True).result
    assert result.shape == (2, 100, 90, max(3, channels))
    outside = (mask == 0).expand(2, -1, -1)
    assert torch.equal(result[outside], image.expand(-1, -1, -1, result.shape[3])[outside])


def test_bad_pictures_and_masks_are_refused_in_a_sentence(crop_nodes):
    crop, stitch = crop_nodes
    image, mask = torch.rand(1, 64, 64, 3), torch.ones(1, 64, 64)
    for bad_image, bad_mask, words in [
        (image, mask * 0, "mask is empty"),
        (image, mask * torch.nan, "mask: 4096 values are NaN"),
        (image * torch.inf, mask, r"image: .* values are NaN or infinite"),
        (image, mask[:, :40], r"mask has the shape \[1, 40, 64\]"),
        (image, mask.expand(3, -1, -1), r"mask has the shape \[3, 64, 64\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            crop.execute(bad_image, bad_mask, 8, 128)
    part, _, place = crop.execute(image, mask, 8, 128).result
    with pytest.raises(ValueError, match=r"image: .* values are NaN or infinite"):
        stitch.execute(place, part * torch.nan, 4, True)
