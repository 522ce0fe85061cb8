"""Kontext Settings for This Machine on a real server: what it says, what it wires, what the sidebar is told."""

import json
import re
from pathlib import Path

import pytest
import requests
from kontextkit.devtools.server import PromptError
from kontextkit.devtools.stand_ins import api_with_stand_ins
from server_notes import notes

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows" / "api"
DEMO = json.loads((WORKFLOWS / "kontext_demo.json").read_text())
TIER = {"class_type": "KontextTier", "inputs": {"tier": "auto", "use_case": "interactive"}}


def test_its_outputs_are_taken_by_ksampler_and_the_optimizer(server):
    workflow = json.loads(json.dumps(DEMO)) | {"90": TIER}
    workflow["91"] = {"class_type": "KontextOptimize", "inputs": {"model": ["1", 0], "preset": ["90", 6]}}
    linked = {"model": ["91", 0], "steps": ["90", 0], "sampler_name": ["90", 4], "scheduler": ["90", 5]}
    workflow["15"]["inputs"] |= linked
    steps = []
    assert server.run(workflow, lambda _node, _step, n: steps.append(n))
    assert steps[-1] == 8


def test_under_it_stands_what_was_chosen_and_why(server):
    tier = {"class_type": "KontextTier", "inputs": {"tier": "auto", "use_case": "gallery batch"}}
    workflow = {"1": tier, "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 7]}}}
    ((node, text),) = notes(server, workflow)
    assert node == "1"
    first, *_, last = text.splitlines()
    assert first.startswith("Tier ")
    assert "for gallery batch: 512x512, 8 steps, guidance 1.8" in text
    assert "Forecast with one reference: " in text
    assert last


def test_the_machine_is_told_without_a_path(server):
    answer = requests.get(f"{server.url}/kontextkit/machine", timeout=60)
    facts = answer.json()
    assert facts["machine"]["host_bytes"] > 1e9
    assert facts["tier"]["name"]
    names = [each["name"] for each in facts["installed"]]
    assert {"Triton", "FP8 arithmetic", "Attention: sage"} <= set(names)
    listed = {each["name"] for some in facts["workflows"].values() for each in some}
    assert listed == {name for name in listed if (WORKFLOWS / f"{name}.json").exists()}
    assert str(server.base) not in answer.text


def test_a_run_through_the_optimizer_is_told(server):
    workflow = api_with_stand_ins(json.loads((WORKFLOWS / "kontext_tier_12gb.json").read_text()), 6)
    workflow["1"]["inputs"]["compute_dtype"] = "float32"  # not the run of another test
    server.run(workflow)
    run = requests.get(f"{server.url}/kontextkit/runs", timeout=30).json()[-1]
    assert run["computed"] + run["kept"] + run["skipped"] == 6
    assert run["seconds"] > 0


def test_each_sampler_of_a_prompt_is_a_run(server):
    study = api_with_stand_ins(json.loads((WORKFLOWS / "kontext_scheduler_study.json").read_text()), 5)
    study["1"]["inputs"]["compute_dtype"] = "float32"
    server.run(study)
    first, last = requests.get(f"{server.url}/kontextkit/runs", timeout=30).json()[-2:]
    assert first["computed"] == last["computed"] == 5
    assert [run.get("ssim") is not None for run in (first, last)] == [False, True]


def test_asking_changes_nothing(server):
    first, second = (requests.get(f"{server.url}/kontextkit/runs", timeout=30).json() for _ in range(2))
    assert first == second
    for route in ("machine", "runs"):
        assert requests.post(f"{server.url}/kontextkit/{route}", json={}, timeout=30).status_code == 405


@pytest.mark.parametrize(
    ("node", "key", "words"),
    [
        ("1", "model_name", r"flux1-kontext-dev-Q8_0\.gguf is not there\. Download it \(12\.7 GB\) from https://"),
        ("1", "model_name", r"diffusion_models, press R and run again"),
        ("2", "t5xxl_name", r"t5-v1_1-xxl-encoder-Q4_K_M\.gguf is not there\. Download .*text_encoders, press R"),
    ],
)
def test_a_missing_file_is_named_with_where_it_goes_and_where_to_get_it(server, node, key, words):
    workflow = json.loads((WORKFLOWS / "kontext_tier_cpu.json").read_text())
    workflow["1"]["inputs"]["model_name"] = "flux1-kontext-dev-Q8_0.gguf"
    with pytest.raises(PromptError) as caught:
        server.run(workflow)
    errors = caught.value.details["node_errors"][node]["errors"]
    (details,) = [each["details"] for each in errors if each["extra_info"]["input_name"] == key]
    assert re.search(words, details)
