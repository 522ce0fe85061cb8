"""Kontext Quality Lab in a real server: its table, files, refusals, and what Cancel leaves."""

import json
from pathlib import Path

import pytest
import requests
from kontextkit.devtools.server import PromptError
from server_notes import notes

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = json.loads((ROOT / "workflows" / "api" / "kontext_quality_lab.json").read_text())
LAB = "14"


def workflow(**changes):
    """The bundled one on a picture of 64x64 pixels."""
    graph = json.loads(json.dumps(BUNDLED))
    graph["2"]["inputs"] |= {"width": 64, "height": 64}
    graph[LAB]["inputs"] |= {"steps": 3, "values": "2", "filename_prefix": "lab"} | changes
    return graph


def written(server, prefix="lab"):
    return sorted(path.name for path in (server.base / "output").glob(f"{prefix}*"))


def test_the_node_explains_itself(server):
    node = requests.get(f"{server.url}/object_info/KontextQualityLab", timeout=30).json()["KontextQualityLab"]
    assert (node["display_name"], node["category"], node["output_node"]) == ("Kontext Quality Lab", "Kontext", True)
    inputs = node["input"]["required"] | node["input"]["optional"]
    assert all(len(options["tooltip"]) > 20 for _, options in inputs.values() if options)
    assert inputs["setting"][1]["options"] == [
        "precision",
        "steps",
        "guidance",
        "denoise",
        "context weight",
        "cache threshold",
    ]
    assert node["output_name"] == ["plot", "sheet", "table", "raw"]
    assert all(node["output_tooltips"])


def test_a_sweep_shows_its_table_and_writes_its_files(server):
    found = [text for node, text in notes(server, workflow()) if node == LAB]
    assert found[0].startswith("steps 3: 1 of 8 pictures, about ")
    assert found[-1].startswith("steps 2: SSIM 0.9")
    stem = "lab_steps_00001"
    assert written(server) == [f"{stem}{ending}" for ending in (".csv", ".json", ".md", "_plot.png", "_sheet.png")]
    assert "| 3 (baseline) | 1.0000 |" in (server.base / "output" / f"{stem}.md").read_text()
    data = json.loads((server.base / "output" / f"{stem}.json").read_text())
    assert len(data["pictures"]) == 2 * 2 * 2
    assert data["made_with"]["model"] == "kontext_demo_bf16.safetensors"
    assert str(server.base) not in json.dumps(data)
    notes(server, workflow(first_seed=7))
    assert "lab_steps_00002.md" in written(server)


def test_a_cancelled_sweep_writes_nothing(server):
    def cancel(_node, step, steps):
        if step >= 3:
            requests.post(f"{server.url}/interrupt", timeout=30)

    with pytest.raises(PromptError, match="interrupted"):
        server.run(workflow(n_seeds=50, filename_prefix="cut"), cancel)
    assert written(server, "cut") == []
    assert server.run(workflow())


BAD = [
    ({"values": "2, x"}, "values has 'x'; steps takes whole numbers"),
    ({"setting": "denoise", "values": "2"}, "values has '2'; denoise takes numbers from 0.01 to 1"),
    ({"setting": "precision", "values": ""}, "values is empty; precision takes names"),
    ({"setting": "precision", "values": "nowhere.gguf"}, "'nowhere.gguf', which is no model file here"),
    ({"setting": "sharpness"}, "setting is 'sharpness', expected one of"),
    ({"filename_prefix": "../../out"}, "outside the output folder"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_a_bad_input_is_explained_and_the_queue_goes_on(server, changes, words):
    with pytest.raises(PromptError, match=words):
        server.run(workflow(**changes))
