"""A real server: the bundled workflows paint pictures, bad files are explained, the queue goes on."""

import io
import json
import shutil
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import requests
import torch
from flux_files import write_gguf, write_packed
from kontextkit.devtools.flux_shapes import bfl_shapes
from kontextkit.devtools.server import PromptError
from kontextkit.devtools.stand_ins import api_with_stand_ins
from PIL import Image
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows" / "api"
EDIT = json.loads((WORKFLOWS / "kontext_edit.json").read_text())
DEMO = json.loads((WORKFLOWS / "kontext_demo.json").read_text())
SIZES = {  # of the pictures of the workflows that make more than one
    "kontext_demo.json": [(256, 256), (256, 256), (520, 256)],
    "kontext_inpaint.json": [(256, 256), (256, 256), (312, 256)],
    "kontext_inpaint_crop.json": [(256, 256), (256, 256), (312, 256)],
    "kontext_quality_lab.json": [(1215, 342), (338, 826)],
    "kontext_gallery_batch.json": 4 * [(256, 256)],
    "kontext_multi_reference.json": [(1024, 1030), (256, 256)],  # the first shows the layout
    "kontext_scheduler_study.json": [(256, 256), (256, 256), (312, 256)],
    "kontext_quantize.json": 3 * [(512, 256)],
}
EDITED = [(256, 256), (312, 256)]  # and the map of what changed, of the others
SIZES |= {f"kontext_{name}.json": [(256, 256)] for name in ("edit", "lightning", "optimized")}
LAST_STEPS = {"kontext_lightning.json": 8}  # its LoRA says how many
LAST_STEPS |= {"kontext_quality_lab.json": 4 * (2 + 1), "kontext_quantize.json": 3 * 2}  # of all pictures
LAST_STEPS |= {"kontext_premium.json": 3, "kontext_tier_8gb_low_memory.json": 3}  # tiles that are decoded
GRAY, GREEN = (0.56, 0.57, 0.58), (0.17, 0.60, 0.24)  # demo/training/scenes.py


def edit(steps=2, **changes):
    workflow = api_with_stand_ins(EDIT, steps)
    workflow["1"]["inputs"] |= changes
    return workflow


def only_load(name):
    """The loader alone, with a node that takes anything as its output."""
    return {
        "1": {"class_type": "KontextLoadModel", "inputs": {"model_name": name, "compute_dtype": "auto"}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def opened(png):
    """(height, width, 3) in 0-1."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255


@pytest.mark.parametrize("name", sorted(path.name for path in WORKFLOWS.glob("*.json")))
def test_a_bundled_workflow_paints_its_pictures(server, name):
    steps = []
    workflow = api_with_stand_ins(json.loads((WORKFLOWS / name).read_text()), 2)
    pictures = [
        Image.open(io.BytesIO(png)) for png in server.run(workflow, lambda _node, step, _steps: steps.append(step))
    ]
    assert [(picture.format, picture.size) for picture in pictures] == [
        ("PNG", size) for size in SIZES.get(name, EDITED)
    ]
    assert all(np.asarray(picture).std() > 10 for picture in pictures)
    assert steps[-1] == LAST_STEPS.get(name, 2)


def test_the_demo_changes_what_the_prompt_names_and_keeps_the_rest(server):
    assert DEMO["11"]["inputs"]["text"] == "make the background green"
    before, after, side_by_side = (opened(png) for png in server.run(DEMO))
    background = np.abs(before - GRAY).max(axis=2) < 0.01
    assert 0.7 < background.mean() < 0.9
    color = after[background].mean(axis=0)
    assert np.linalg.norm(color - GREEN) < np.linalg.norm(color - GRAY) / 2
    for rows, columns in ((slice(48, 104), slice(44, 100)), (slice(156, 178), slice(148, 226))):  # square, cross
        assert np.ptp(before[rows, columns], axis=(0, 1)).max() == 0
        assert np.abs(after[rows, columns] - before[rows, columns]).mean(axis=(0, 1)).max() < 0.1
    assert np.array_equal(side_by_side[:, :256], before)
    assert np.array_equal(side_by_side[:, -256:], after)


@pytest.mark.parametrize("qtype", ["F16", "Q8_0", "Q4_0"])
def test_a_gguf_file_paints_nearly_the_same_picture(server, models, qtype):
    write_gguf(models / f"{qtype}.gguf", load_file(ROOT / "demo" / "kontext_demo_bf16.safetensors"), qtype)
    ours, full = (opened(server.run(wish)[0]) for wish in (edit(model_name=f"{qtype}.gguf"), edit()))
    assert np.abs(ours - full).mean() < {"F16": 0.004, "Q8_0": 0.012, "Q4_0": 0.1}[qtype]


def test_models_may_lie_in_a_subfolder(server, models):
    (models / "deep").mkdir()
    shutil.copyfile(ROOT / "demo" / "kontext_demo_q8_0.gguf", models / "deep" / "x.gguf")
    info = requests.get(f"{server.url}/object_info/KontextLoadModel", timeout=30).json()["KontextLoadModel"]
    combo = info["input"]["required"]["model_name"]
    options = combo[1]["options"] if combo[0] == "COMBO" else combo[0]
    assert str(Path("deep", "x.gguf")) in options
    assert server.run(edit(model_name=str(Path("deep", "x.gguf"))))


def test_free_unloads_and_the_next_prompt_runs(server):
    before = server.run(edit())
    answer = requests.post(f"{server.url}/free", json={"unload_models": True, "free_memory": True}, timeout=30)
    assert answer.ok
    assert server.run(edit()) == before


def test_interrupt_ends_the_prompt_and_the_next_one_runs(server):
    def stop(_node, step, _steps):
        if step >= 2:
            requests.post(f"{server.url}/interrupt", timeout=30)

    with pytest.raises(PromptError, match="interrupted"):
        server.run(edit(steps=400, compute_dtype="float32"), stop)
    assert server.run(edit())


def small():
    return {name: torch.zeros(shape) for name, shape in bfl_shapes(128, 32, 32, 1, 1).items()}


def written(write, cut=None):
    def make(path):
        write(path)
        if cut:
            path.write_bytes(path.read_bytes()[: -cut or None])

    return make


def raw(content):
    return lambda path: path.write_bytes(content)


def a_gguf(qtype="Q8_0"):
    return lambda path: write_gguf(path, small(), qtype)


def a_safetensors(change):
    return lambda path: save_file(change(small()), path)


def of_type(qtype, scale):
    """A whole transformer in blocks of a type, their scales all the same."""

    def write(path):
        block_size, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[qtype]]
        packed = {}
        for name, shape in bfl_shapes(256, 256, 256, 1, 1).items():
            if len(shape) == 2 and shape[-1] % block_size == 0:
                blocks = np.zeros((shape[0], shape[1] // block_size, n_bytes), dtype=np.uint8)
                blocks[..., :2] = np.array([scale], np.float16).view(np.uint8)
                packed[name] = blocks.reshape(shape[0], -1), qtype
            else:
                packed[name] = np.zeros(shape, dtype=np.float32), "F32"
        write_packed(path, packed)

    return write


SDXL = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3), "step": torch.tensor(1)}
BAD = {
    "empty.gguf": (raw(b""), "empty.gguf: the file is empty"),
    "truncated.gguf": (written(a_gguf(), cut=5000), "ends at byte .* the file at .* download the file again"),
    "truncated.safetensors": (written(a_safetensors(dict), cut=5000), "broken safetensors header"),
    "archive.gguf": (raw(b"PK\x03\x04" + bytes(64)), "zip archive"),
    "page.gguf": (raw(b"<!DOCTYPE html><html>Sign in"), "web page"),
    "pointer.gguf": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs pointer"),
    "really_gguf.safetensors": (a_gguf(), r"content is GGUF .* Rename it to really_gguf\.gguf"),
    "really_safetensors.gguf": (a_safetensors(dict), r"Rename it to really_safetensors\.safetensors"),
    "sdxl.safetensors": (a_safetensors(lambda _: SDXL), "Stable Diffusion .* use CheckpointLoaderSimple"),
    "missing.safetensors": (
        a_safetensors(lambda t: {k: v for k, v in t.items() if "linear1" not in k}),
        r"2 of \d+ tensors of a FLUX.1 transformer are missing: single_blocks.0.linear1.weight",
    ),
    "extra.safetensors": (a_safetensors(lambda t: t | {"odd.weight": torch.ones(1)}), "1 tensors belong to no .* odd"),
    "ternary.gguf": (of_type("TQ1_0", 1), r"'txt_in.weight' is stored as TQ1_0 .* cannot decode yet"),
    "damaged.gguf": (of_type("Q4_K", np.nan), "block 0 of tensor 'txt_in.weight' has the scale nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_explained_quickly_and_the_queue_goes_on(server, models, name):
    make, words = BAD[name]
    make(models / name)
    begin = time.perf_counter()
    with pytest.raises(PromptError, match=words) as caught:
        server.run(only_load(name))
    assert time.perf_counter() - begin < 2
    assert caught.value.details["node_id"] == "1"
    assert caught.value.details["exception_message"].startswith(name)
    assert server.run(edit())
    (models / name).unlink()


def test_a_file_removed_between_queueing_and_loading_is_explained(server, models):
    path = models / "soon_gone.gguf"
    a_gguf()(path)
    server.queue(edit(steps=20, compute_dtype="float32"))
    prompt_id = server.queue(only_load(path.name))
    path.unlink()
    while prompt_id not in (history := requests.get(f"{server.url}/history/{prompt_id}", timeout=30).json()):
        time.sleep(0.1)
    events = dict(history[prompt_id]["status"]["messages"])
    assert "soon_gone.gguf: the file is gone from" in events["execution_error"]["exception_message"]
    assert server.run(edit())


def test_a_name_that_is_not_listed_is_refused_before_it_is_queued(server):
    with pytest.raises(PromptError, match="outside"):
        server.run(only_load("../../outside.gguf"))
