"""Check Mask as ComfyUI runs it."""

import numpy as np
import pytest
import requests
import torch


@pytest.fixture
def node(comfyui):
    from kontextkit.nodes.mask_quality import KontextMaskQuality

    return KontextMaskQuality


def circle(width=8.0, side=128):
    y, x = np.mgrid[:side, :side]
    return torch.from_numpy(np.clip(0.5 + (40 - np.hypot(x - 64, y - 64)) / width, 0, 1).astype(np.float32))[None]


def test_the_promised_sockets_come_first_and_everything_is_explained(node):
    schema = node.define_schema()
    assert schema.inputs[0].id == "mask"
    assert [each.display_name for each in schema.outputs] == ["mask", "grade", "score", "overlay", "report"]
    assert all(each.optional for each in schema.inputs[1:])
    assert all(len(each.tooltip) > 40 for each in [*schema.inputs, *schema.outputs])


def test_a_mask_comes_out_as_it_went_in_unless_cleaning_is_asked_for(node):
    mask = circle()
    out, grade, score, overlay, report = node.execute(mask).result
    assert torch.equal(out, mask)
    assert (grade, overlay.shape) == ("standard", (1, 128, 128, 3))
    assert f"score {score:.2f}" in report
    out, grade, _, _, report = node.execute(mask, threshold=0.5).result
    assert (grade, sorted(out.unique().tolist())) == ("standard", [0, 1])
    assert report.endswith("Cleaned: high, score 1.00.")


def test_a_long_batch_is_checked_one_by_one_and_can_be_interrupted(node):
    import comfy.model_management as management

    masks = circle().expand(50, -1, -1)
    assert len(node.execute(masks, feather=3.0).result[0]) == 50
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        node.execute(masks)


def test_a_mask_of_nan_is_refused_in_a_sentence(node):
    with pytest.raises(ValueError, match="mask: 16384 values are NaN or infinite"):
        node.execute(circle() * torch.nan)


def test_a_server_grades_a_mask_drawn_by_nodes(server):
    workflow = {
        "1": {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}},
        "2": {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 48, "height": 48}},
        "3": {
            "class_type": "MaskComposite",
            "inputs": {"destination": ["1", 0], "source": ["2", 0], "x": 32, "y": 32, "operation": "add"},
        },
        "4": {"class_type": "KontextMaskQuality", "inputs": {"mask": ["3", 0], "grow": 4}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 3]}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["4", 4]}},
    }
    assert len(server.run(workflow)) == 1
    outputs = list(requests.get(f"{server.url}/history", timeout=30).json().values())[-1]["outputs"]
    assert outputs["6"]["text"][0].startswith("Grade: high, score 1.00.")
