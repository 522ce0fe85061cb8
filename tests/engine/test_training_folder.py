"""The folder of edits: what is read, and what is said of one that will not do."""

import pytest
import torch
from kontextkit.engine.errors import TrainingDataError
from kontextkit.engine.training.curve import draw_curve, running_mean
from kontextkit.engine.training.triples import find_triples, fingerprint, read_picture
from PIL import Image


def picture(path, size=(32, 48), color=(255, 0, 0)):
    Image.new("RGB", size, color).save(path)


@pytest.fixture
def folder(tmp_path):
    """One whole edit with two references, and files that are none of its business."""
    for name in ("cat.png", "cat_ref.png", "cat_ref2.jpg"):
        picture(tmp_path / name)
    (tmp_path / "cat.txt").write_text(" make it red\n")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / ".hidden.png").write_text("no picture")
    return tmp_path


def test_an_edit_is_read(folder):
    (edit,) = find_triples(folder)
    assert (edit.name, edit.instruction) == ("cat", "make it red")
    assert [path.name for path in edit.references] == ["cat_ref.png", "cat_ref2.jpg"]
    pixels = read_picture(edit.result)
    assert pixels.shape == (48, 32, 3)
    assert torch.equal(pixels[0, 0], torch.tensor([1.0, 0.0, 0.0]))
    before = fingerprint([edit])
    picture(folder / "cat.png", color=(0, 0, 255))
    assert fingerprint(find_triples(folder)) != before


BREAKS = {
    "cat has .* but no cat.txt": lambda f: (f / "cat.txt").unlink(),
    "cat has .* but no cat_ref.png": lambda f: [(f / name).unlink() for name in ("cat_ref.png", "cat_ref2.jpg")],
    "but no cat.png": lambda f: (f / "cat.png").unlink(),
    "dog has dog.txt but no dog_ref.png and no dog.png": lambda f: (f / "dog.txt").write_text("x"),
    "cat.txt is empty": lambda f: (f / "cat.txt").write_text(" \n"),
    "cat.txt is no UTF-8": lambda f: (f / "cat.txt").write_bytes(b"\xff\xfe\xff"),
    "cat_ref.png cannot be read as a picture": lambda f: (f / "cat_ref.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken"),
    "differ in size .*cat.png 64x48": lambda f: picture(f / "cat.png", (64, 48)),
    "no multiples of 16 .*cat.png 40x40": lambda f: [
        picture(f / n, (40, 40)) for n in ("cat.png", "cat_ref.png", "cat_ref2.jpg")
    ],
    "cat.png and cat.jpg|cat.jpg and cat.png": lambda f: picture(f / "cat.jpg"),
    "there are no edits in this folder": lambda f: [p.unlink() for p in f.glob("cat*")],
}


@pytest.mark.parametrize("says", BREAKS)
def test_what_is_wrong_is_said(folder, says):
    BREAKS[says](folder)
    with pytest.raises(TrainingDataError, match=f"(?s){says}.*NAME_ref.png"):
        find_triples(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TrainingDataError, match="nowhere: there is no such folder"):
        find_triples(tmp_path / "nowhere")


def test_the_curve_falls_where_losses_do():
    assert running_mean([4.0, 2.0, 0.0], 2) == [4.0, 3.0, 1.0]
    for losses in ([], [1.0], [0.0, 0.0]):
        draw_curve(losses, 10)
    curve = draw_curve([1 - i / 100 for i in range(100)], 100)
    strong = [
        (x, y) for x in range(curve.width) for y in range(curve.height) if curve.getpixel((x, y)) == (31, 95, 191)
    ]
    assert min(strong)[1] < 100 < 300 < max(strong)[1]
