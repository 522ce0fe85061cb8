"""The bundled workflows in the real front-end."""

import json
from pathlib import Path

import pytest
from kontextkit.devtools.stand_ins import ui_with_stand_ins

WORKFLOWS = Path(__file__).resolve().parents[2] / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))

LOAD = "async (graph) => { await app.loadGraphData(graph); await new Promise(done => setTimeout(done, 500)); }"
TYPES = "() => app.graph.nodes.map(node => [node.type, node.type in LiteGraph.registered_node_types])"


SHOWING = "app.graph.nodes.filter(node => ['PreviewImage', 'SaveImage'].includes(node.type))"
OF_PREVIEW_ANY = {"previewMode", "preview_text", "preview_markdown"}  # what older front-ends send along
NO_GGUF = "This workflow is missing models"  # older front-ends say so of a .gguf file that is there
SIZES = {  # of the pictures of some workflows; test_server.py runs every one
    "kontext_demo": [[256, 256], [256, 256], [520, 256]],
    "kontext_edit": [[256, 256]],
    "kontext_inpaint": [[256, 256], [256, 256]],
    "kontext_quality_lab": [[338, 826]],
    "kontext_tier_12gb": [[256, 256]],
}


def complaints(page):
    """What the front-end says is missing or wrong: nodes it marks, and dialogs and toasts."""
    marked = page.evaluate("() => app.graph.nodes.filter(node => node.has_errors).map(node => node.type)")
    shown = page.locator("[role=dialog]:visible, .p-toast-message-error:visible, .p-toast-message-warn:visible")
    texts = [text for text in shown.all_inner_texts() if not text.startswith("Templates")]  # on a first visit
    return [*marked, *(text for text in texts if not text.startswith(NO_GGUF) or ".safetensors" in text)]


def load(page, workflow):
    page.evaluate(LOAD, workflow)


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_loads_without_missing_nodes_lost_links_or_errors(one_page, name):
    page, errors = one_page, []
    page.once("pageerror", lambda error: errors.append(str(error)))
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text())
    load(page, workflow)
    loaded = page.evaluate(TYPES)
    assert errors == []
    assert sorted(kind for kind, _ in loaded) == sorted(node["type"] for node in workflow["nodes"])
    assert [kind for kind, known in loaded if not known] == []
    assert page.evaluate("() => app.graph.serialize().links.length") == len(workflow["links"])


@pytest.mark.parametrize("name", NAMES)
def test_a_workflow_queues_as_its_api_twin(one_page, name):
    page = one_page
    load(page, json.loads((WORKFLOWS / f"{name}.json").read_text()))
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    for node in prompt.values():
        node.pop("_meta", None)
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key not in OF_PREVIEW_ANY}
    assert prompt == json.loads((WORKFLOWS / "api" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", SIZES)
def test_a_workflow_queued_from_the_page_paints_its_pictures(page, server, screenshots, name):
    load(page, ui_with_stand_ins(json.loads((WORKFLOWS / f"{name}.json").read_text()), steps=2))
    assert complaints(page) == []
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    page.wait_for_function(f"() => {SHOWING}.every(node => node.imgs?.length)", timeout=90_000)
    page.wait_for_timeout(500)
    page.screenshot(path=screenshots / f"{name}.png")
    sizes = page.evaluate(f"() => {SHOWING}.map(node => [node.imgs[0].naturalWidth, node.imgs[0].naturalHeight])")
    assert sorted(sizes) == SIZES[name]
    assert complaints(page) == []
    assert list((server.base / "output").glob(f"{name}*.png"))


def test_the_demo_needs_no_file_of_the_user():
    """As it is, with no stand-ins: nothing in it names a file of a models or input folder."""
    workflow = json.loads((WORKFLOWS / "kontext_demo.json").read_text())
    assert ui_with_stand_ins(workflow) == workflow
    assert not any("models" in node["properties"] or node["type"] == "LoadImage" for node in workflow["nodes"])


def test_the_node_is_found_by_name_and_explains_its_inputs(page):
    node = page.evaluate("async () => (await (await fetch('/object_info/KontextLoadModel')).json()).KontextLoadModel")
    assert node["display_name"] == "Load Kontext Model"
    assert node["category"] == "Kontext"
    assert node["output"] == ["MODEL"]
    for name in ("model_name", "compute_dtype"):
        assert len(node["input"]["required"][name][1]["tooltip"]) > 40


def test_a_training_queues_with_its_defaults_and_its_lora_can_be_wired(page):
    prompt = page.evaluate("""async () => {
        app.graph.clear();
        const [train, load] = ["KontextTrainLoRA", "KontextLightningLoRA"].map(id => LiteGraph.createNode(id));
        [train, load].forEach(node => app.graph.add(node));
        train.connect(0, load, load.inputs.findIndex(input => input.name === "lora_name"));
        const widgets = train.widgets.map(widget => widget.name);
        const nodes = Object.values((await app.graphToPrompt()).output);
        return [widgets, ...nodes.map(node => node.inputs)];
    }""")
    names = ["folder", "lora_name", "steps", "rank", "learning_rate"]
    assert prompt[0] == names
    assert [prompt[1][name] for name in names] == ["", "my_edit", 1000, 8, 1e-4]
    assert prompt[2]["lora_name"][1] == 0


def test_the_slider_has_both_pictures_and_is_neither_queued_nor_saved(page):
    slider = "app.graph.nodes.at(-1).widgets.find(widget => widget.name === 'compare_view')"
    page.evaluate("""() => {
        app.graph.clear();
        const [image, compare] = ["EmptyImage", "KontextCompareSSIM"].map(id => LiteGraph.createNode(id));
        [image, compare].forEach(node => app.graph.add(node));
        image.connect(0, compare, 0);
        image.connect(0, compare, 1);
    }""")
    before = page.evaluate("async () => (await app.graphToPrompt()).output")
    page.evaluate("async () => { await app.queuePrompt(0, 1); }")
    page.wait_for_function(f"() => {slider}.value?.beforeImages?.length", timeout=90_000)
    for images in page.evaluate(f"() => [{slider}.value.beforeImages, {slider}.value.afterImages]"):
        (url,) = images
        assert page.request.get(url.replace("/api", f"{page.url.split('?')[0].rstrip('/')}/api", 1)).ok
    assert page.evaluate("async () => (await app.graphToPrompt()).output") == before
    assert "compare_view" not in json.dumps([node["inputs"] for node in before.values()])
    assert "beforeImages" not in page.evaluate("() => JSON.stringify(app.graph.serialize())")


def test_the_help_page_is_served(page, server):
    text = page.request.get(f"{server.url}/extensions/KontextKit/docs/KontextLoadModel.md")
    assert text.ok
    assert "# Load Kontext Model" in text.text()


def test_the_workflows_are_offered_as_templates(page, server):
    templates = page.request.get(f"{server.url}/api/workflow_templates").json()
    assert set(NAMES) <= set(templates["KontextKit"])
