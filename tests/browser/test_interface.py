"""The pack in the real front-end: sidebar, command, greeting, templates, help pages, badges."""

import json
from pathlib import Path

from kontextkit.devtools.stand_ins import api_with_stand_ins

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "workflows" / "api"
NAMES = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
NODES = sorted(path.stem for path in (ROOT / "js" / "docs").glob("*.md"))
LOCALE = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())


def open_sidebar(page):
    page.keyboard.press("Escape")  # a first visit is shown templates
    page.wait_for_timeout(500)
    page.locator(".kontextkit-tab-button").first.click()
    page.wait_for_selector(".kontext-workflows", timeout=60_000)


def test_the_sidebar_shows_the_machine_the_runs_and_every_workflow(page, server, screenshots):
    server.run(api_with_stand_ins(json.loads((API / "kontext_optimized.json").read_text()), 5))
    open_sidebar(page)
    assert "Tier:" in page.locator(".kontext-machine").inner_text()
    assert "passes skipped" in page.locator(".kontext-runs svg").first.text_content()
    assert page.locator(".kontext-runs svg rect").count() > 0
    buttons = page.locator("button[data-workflow]").evaluate_all("all => all.map(each => each.dataset.workflow)")
    assert sorted(buttons) == NAMES
    page.screenshot(path=screenshots / "sidebar.png")


def test_its_first_button_opens_the_workflow_for_this_machine_and_makes_room_for_it(page, server, screenshots):
    slug = page.request.get(f"{server.url}/kontextkit/machine").json()["tier"]["slug"]
    workflow = json.loads((ROOT / "workflows" / f"kontext_tier_{slug}.json").read_text())
    open_sidebar(page)
    page.locator(".kontext-first").click()
    page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}", timeout=30_000)
    kinds = page.evaluate("() => app.graph.nodes.map(node => node.type)")
    assert sorted(kinds) == sorted(node["type"] for node in workflow["nodes"])
    page.wait_for_selector(".kontext-panel", state="detached", timeout=30_000)  # it would hide the notes
    page.wait_for_timeout(1000)
    page.screenshot(path=screenshots / "opened_from_the_sidebar.png")


def test_the_tab_marks_the_workflow_of_this_machine_and_offers_the_demo(page, server):
    slug = page.request.get(f"{server.url}/kontextkit/machine").json()["tier"]["slug"]
    open_sidebar(page)
    marked = page.locator("button[data-workflow]", has_text="this machine")
    assert [each.get_attribute("data-workflow") for each in marked.all()] == [f"kontext_tier_{slug}"]
    page.get_by_text("Try the demo").click()
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'KontextLoadDemo')", timeout=30_000)


def test_the_command_does_the_same_and_stands_in_the_menu(page):
    page.evaluate("async () => { app.graph.clear(); }")
    page.evaluate("() => app.extensionManager.command.execute('KontextKit.OpenForThisMachine')")
    page.wait_for_function("() => app.graph.nodes.some(node => node.type === 'KontextTier')", timeout=30_000)
    menu = page.evaluate("() => app.extensions.find(each => each.name === 'KontextKit').menuCommands")
    assert menu == [{"path": ["Extensions", "KontextKit"], "commands": ["KontextKit.OpenForThisMachine"]}]


def test_it_greets_once(page, server):
    """The pages before this one did."""
    page.wait_for_function("() => app.extensionManager.setting.get('KontextKit.Greet') === false", timeout=30_000)
    page.evaluate("() => app.extensionManager.setting.set('KontextKit.Greet', true)")
    page.reload()
    page.wait_for_selector(".p-toast-message:has-text('KontextKit')", timeout=60_000)
    page.wait_for_function("() => app.extensionManager.setting.get('KontextKit.Greet') === false", timeout=30_000)


def test_every_help_page_is_served_with_its_pictures(one_page, server):
    docs = f"{server.url}/extensions/KontextKit/docs"
    for name in NODES:
        text = one_page.request.get(f"{docs}/{name}.md").text()
        assert text.startswith(f"# {LOCALE[name]['display_name']}\n")
        pictures = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
        for picture in pictures:
            assert one_page.request.get(f"{docs}/{picture}").headers["content-type"].startswith("image/"), picture


def test_every_template_has_a_thumbnail(one_page, server):
    templates = one_page.request.get(f"{server.url}/api/workflow_templates").json()
    assert sorted(templates["KontextKit"]) == NAMES
    for name in NAMES:
        picture = one_page.request.get(f"{server.url}/api/workflow_templates/KontextKit/{name}.jpg")
        assert picture.headers["content-type"] == "image/jpeg", name


def test_the_templates_browser_shows_them(page, screenshots):
    page.keyboard.press("Escape")
    page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text("KontextKit").first.click()
    page.wait_for_selector("[role=dialog] :text('kontext_tier_24gb_standard')", timeout=30_000)
    drawn = "[...document.querySelectorAll('[role=dialog] img')].filter(image => image.naturalWidth === 480)"
    page.wait_for_function(f"() => {drawn}.length > 5", timeout=30_000)
    page.screenshot(path=screenshots / "templates.png")


def test_a_badge_is_coloured_by_its_grade(page):
    """By the event that ComfyUI sends when a node has run."""
    shown = page.evaluate("""async () => {
        const { api } = await import("/scripts/api.js");
        app.graph.clear();
        const node = LiteGraph.createNode("KontextTier");
        app.graph.add(node);
        const say = badge => api.dispatchEvent(new CustomEvent("executed", {
            detail: { node: String(node.id), output: { kontext_badge: [badge] } } }));
        const before = node.badges.length;
        const seen = [["excellent", "0.97"], ["poor", "0.61"]].map(([grade, text]) => {
            say({ grade, text });
            const badge = node.badges.at(-1)();
            return [badge.text, badge.bgColor];
        });
        return [node.badges.length - before, ...seen];
    }""")
    assert shown == [1, ["0.97", "#2f7d32"], ["0.61", "#b3261e"]]
