// KontextKit in the front-end: the sidebar tab, the command for this machine, the greeting, badges on nodes.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { showBadge } from "./lib/badges.js";
import { element } from "./lib/dom.js";
import { installedSection, machineName, machineSection } from "./lib/machine.js";
import { runsSection } from "./lib/runs.js";
import { nameOf, packOf, sorted, workflowsSection } from "./lib/workflows.js";

const OPEN = "KontextKit.OpenForThisMachine";
const GREET = "KontextKit.Greet";
const TAB = "kontextkit";
const LABEL = "Open the workflow for this machine";
const [DEMO, TRY] = ["kontext_demo", "Try the demo: no download"];
const pack = packOf(import.meta.url);
let panel = null; // of the tab, while it is open

async function get(route) {
  const response = await api.fetchApi(route);
  if (!response.ok) throw new Error(`${route} answered ${response.status}; see ComfyUI's log`);
  return response.json();
}

async function open(name) {
  try {
    await app.loadGraphData(await get(`/workflow_templates/${pack}/${name}.json`), true, true, name);
    if (panel?.isConnected) await app.extensionManager.command.execute(`Workspace.ToggleSidebarTab.${TAB}`); // it hides the notes
    await app.extensionManager.command.execute("Comfy.Canvas.FitView");
  } catch (error) {
    say("error", `${name} could not be opened: ${error.message}`);
  }
}

async function openForThisMachine() {
  try {
    const { tier } = await get("/kontextkit/machine");
    await open(nameOf(tier));
  } catch (error) {
    say("error", `This machine could not be read: ${error.message}`);
  }
}

function say(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "KontextKit", detail, life: 15000 });
}

async function greet() {
  const setting = app.extensionManager.setting;
  if (!setting.get(GREET)) return;
  const { machine, tier } = await get("/kontextkit/machine");
  say("info", `${machineName(machine)}: tier ${tier.name}. The Kontext tab, a bolt in the sidebar, opens the workflow for it.`);
  await setting.set(GREET, false);
}

async function fill(panel) {
  const routes = ["/kontextkit/machine", "/kontextkit/runs", "/workflow_templates"];
  let answers;
  try {
    answers = await Promise.all(routes.map(get));
  } catch (error) {
    panel.replaceChildren(`This machine could not be read: ${error.message}`);
    return;
  }
  const [facts, runs, templates] = answers;
  const first = element("button", { class: "kontext-first", click: openForThisMachine }, LABEL);
  panel.replaceChildren(
    first,
    element("button", { click: () => open(DEMO) }, TRY),
    machineSection(facts),
    runsSection(runs),
    workflowsSection(sorted(templates[pack] ?? [], facts.workflows), open, nameOf(facts.tier)),
    installedSection(facts),
  );
}

app.registerExtension({
  name: "KontextKit",
  commands: [{ id: OPEN, label: LABEL, icon: "pi pi-bolt", function: openForThisMachine }],
  menuCommands: [{ path: ["Extensions", "KontextKit"], commands: [OPEN] }],
  settings: [
    {
      id: GREET,
      name: "Say once which workflow fits this machine",
      type: "boolean",
      defaultValue: true,
    },
  ],
  aboutPageBadges: [{ label: "KontextKit", url: `extensions/${pack}/docs/KontextTier.md`, icon: "pi pi-bolt" }],
  nodeCreated(node) {
    if (!node.constructor.comfyClass?.startsWith("Kontext")) return;
    const onExecuted = node.onExecuted;
    node.onExecuted = function (output) {
      onExecuted?.call(this, output);
      for (const badge of output?.kontext_badge ?? []) showBadge(node, badge);
    };
  },
  async setup() {
    document.head.append(
      element("link", { rel: "stylesheet", href: new URL("./kontextkit.css", import.meta.url).href }),
    );
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-bolt",
      title: "Kontext",
      tooltip: "Kontext: this machine, last runs, workflows",
      type: "custom",
      render: (place) => {
        panel = element("div", { class: "kontext-panel" }, "...");
        place.replaceChildren(panel);
        fill(panel);
      },
      destroy: () => (panel = null),
    });
    api.addEventListener("execution_success", () => panel?.isConnected && fill(panel));
    await greet();
  },
});
