"""The training command on the demo model, and its LoRA in ComfyUI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent


def command(comfyui, *words):
    environment = os.environ | {"COMFYUI_PATH": str(comfyui)}
    line = [sys.executable, str(ROOT / "train_lora.py"), *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=environment)


@pytest.mark.newest
def test_the_command_teaches_the_demo_a_new_edit(comfyui, edits, tmp_path):
    from kontextkit.bridge import lora
    from kontextkit.bridge.model import load
    from kontextkit.bridge.training import DEMO, demo_encoders, train_lora
    from kontextkit.engine.errors import TrainingDataError
    from kontextkit.engine.training.lora import Settings

    frozen, out = DEMO.read_bytes(), tmp_path / "frame.safetensors"
    result = command(comfyui, edits, out, "--demo", "--steps", 20, "--rate", 2e-3)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 20 of 20" in result.stdout
    line = next(line for line in result.stdout.splitlines() if "without" in line)
    numbers = [float(word) for word in line.split("noise:")[1].split() if word[0].isdigit()]
    assert numbers[1] < 0.7 * numbers[0], line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frame.safetensors", "frame_loss.png"]
    assert DEMO.read_bytes() == frozen
    read = lora.read(out, load(DEMO))
    assert read.matched_share == 1
    assert not read.skipped
    assert torch.stack([a.up.abs().max() for a in read.adapters.values()]).min() > 0
    with pytest.raises(TrainingDataError, match="this file is there already"):
        train_lora(edits, out, DEMO, demo_encoders, Settings(), print)


@pytest.mark.newest
def test_bad_edits_stop_it_before_anything_is_written(comfyui, edits, tmp_path):
    (tmp_path / "edits").mkdir()
    (tmp_path / "edits" / "a.txt").write_text("make it red")
    result = command(comfyui, tmp_path / "edits", tmp_path / "out" / "a.safetensors", "--demo")
    assert result.returncode == 1
    assert "a has a.txt but no a_ref.png and no a.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["edits"]


def test_where_the_lora_may_lie(edits, tmp_path, comfyui):
    from kontextkit.bridge.training import check_target
    from kontextkit.engine.errors import TrainingDataError

    with pytest.raises(TrainingDataError, match=r"as \.safetensors"):
        check_target(tmp_path / "a.pt", edits)
    with pytest.raises(TrainingDataError, match="folder of the edits"):
        check_target(edits / "a.safetensors", edits)


def test_a_lightning_lora_is_distilled_on_the_sampler_s_own_noise_levels(edits, tmp_path, comfyui):
    import comfy.samplers
    from kontextkit.bridge import lora
    from kontextkit.bridge.model import load
    from kontextkit.bridge.training import DEMO, demo_encoders, own_sigmas, train_lora
    from kontextkit.engine.lora.profiles import choose
    from kontextkit.engine.training.lora import Settings

    model, out = load(DEMO), tmp_path / "fast.safetensors"
    few = comfy.samplers.calculate_sigmas(model.model.model_sampling, "simple", 4)
    torch.testing.assert_close(own_sigmas(4)[::8], few)
    train_lora(edits, out, DEMO, demo_encoders, Settings(rank=2, steps=1, distil=4), lambda _: None)
    profile, why = choose(lora.read(out, model), "auto")
    assert (profile.name, profile.steps, profile.guidance) == ("lightning", 4, 1.0), why
