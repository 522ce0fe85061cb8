"""The node: what it lists, when it loads again, what it says."""

import pytest
import torch
from oracle import error, inputs
from safetensors.torch import save_file


@pytest.fixture
def folders(comfyui, tmp_path, monkeypatch):
    """ComfyUI's model folders, empty, with ComfyUI-GGUF's beside them."""
    import folder_paths

    paths = {name: tmp_path / name for name in ("diffusion_models", "unet", "gguf")}
    for path in paths.values():
        path.mkdir()
    known = dict(folder_paths.folder_names_and_paths)
    known["diffusion_models"] = ([str(paths["unet"]), str(paths["diffusion_models"])], {".safetensors"})
    known["unet_gguf"] = ([str(paths["diffusion_models"]), str(paths["gguf"])], {".gguf"})
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", known)
    return paths


@pytest.fixture
def node(comfyui):
    from kontextkit.nodes.load_model import KontextLoadModel

    return KontextLoadModel


def test_models_of_all_folders_are_listed_once_and_sorted(folders, node):
    (folders["unet"] / "b.gguf").touch()
    (folders["diffusion_models"] / "deep").mkdir()
    (folders["diffusion_models"] / "deep" / "c.safetensors").touch()
    (folders["gguf"] / "a.GGUF").touch()
    (folders["gguf"] / "b.gguf").touch()
    (folders["unet"] / "notes.txt").touch()
    (model_name, _) = node.define_schema().inputs
    assert [name.replace("\\", "/") for name in model_name.options] == ["a.GGUF", "b.gguf", "deep/c.safetensors"]
    assert all(str(path) in model_name.tooltip for path in folders.values())


def test_without_comfyui_gguf_its_folder_is_not_missed(folders, node):
    import folder_paths

    del folder_paths.folder_names_and_paths["unet_gguf"]
    (folders["unet"] / "x.gguf").touch()
    assert node.define_schema().inputs[0].options == ["x.gguf"]


def test_a_changed_file_is_loaded_again_and_a_gone_one_is_told_when_it_runs(folders, node):
    path = folders["unet"] / "x.gguf"
    path.write_bytes(b"1")
    first = node.fingerprint_inputs("x.gguf", "auto")
    assert str(path.parent) not in first  # it is written into every picture
    assert first == node.fingerprint_inputs("x.gguf", "auto") != node.fingerprint_inputs("x.gguf", "float32")
    path.write_bytes(b"22")
    assert node.fingerprint_inputs("x.gguf", "auto") != first
    path.unlink()
    assert "missing" in node.fingerprint_inputs("x.gguf", "auto")
    with pytest.raises(FileNotFoundError, match=r"x\.gguf: the file is gone from .*press R"):
        node.execute("x.gguf", "auto")


def test_a_name_cannot_climb_out_of_its_folder(folders, node):
    (folders["unet"].parent / "outside.gguf").touch()
    with pytest.raises(FileNotFoundError):
        node.execute("../outside.gguf", "auto")


def test_a_file_in_diffusers_names_gives_the_same_velocity(folders, node, twins):
    tensors = twins.ours.transformer.state_dict()
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, folders["unet"] / "d.safetensors")
    (model,) = node.execute("d.safetensors", "float32").result
    hosted = model.model.diffusion_model.to(inputs()["x"].device)
    with torch.no_grad():
        call = inputs(references=[(8, 6)])
        assert error(hosted(**call), twins.ours(**call)) < 1e-6
