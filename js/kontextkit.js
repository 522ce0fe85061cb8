// KontextKit in the front-end: the sidebar tab, the command for this machine, the greeting, badges on nodes.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { badges } from "./lib/badges.js";
import { element } from "./lib/dom.js";
import { installedSection, machineName, machineSection } from "./lib/machine.js";
import { runsSection } from "./lib/runs.js";
import { packOf, sorted, workflowsSection } from "./lib/workflows.js";

const OPEN = "KontextKit.OpenForThisMachine";
const GREET = "KontextKit.Greet";
const LABEL = "Open the workflow for this machine";
const pack = packOf(import.meta.url);

const get = async (route) => (await api.fetchApi(route)).json();

async function open(name) {
  try {
    await app.loadGraphData(await get(`/workflow_templates/${pack}/${name}.json`), true, true, name);
    await app.extensionManager.command.execute("Comfy.Canvas.FitView");
  } catch (error) {
    say("error", `${name} could not be opened: ${error.message}`);
  }
}

async function openForThisMachine() {
  const { tier } = await get("/kontextkit/machine");
  await open(`kontext_tier_${tier.slug}`);
}

function say(severity, detail) {
  app.extensionManager.toast.add({ severity, summary: "KontextKit", detail, life: 15000 });
}

async function greet() {
  const setting = app.extensionManager.setting;
  if (!setting.get(GREET)) return;
  const { machine, tier } = await get("/kontextkit/machine");
  say("info", `${machineName(machine)}: tier ${tier.name}. The Kontext tab in the sidebar opens the workflow for it.`);
  await setting.set(GREET, false);
}

async function fill(panel) {
  const [facts, runs, templates] = await Promise.all(
    ["/kontextkit/machine", "/kontextkit/runs", "/workflow_templates"].map(get),
  );
  const first = element("button", { class: "kontext-first", click: openForThisMachine }, LABEL);
  panel.replaceChildren(
    first,
    machineSection(facts),
    runsSection(runs),
    workflowsSection(sorted(templates[pack] ?? [], facts.workflows), open),
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
  async setup() {
    document.head.append(
      element("link", { rel: "stylesheet", href: new URL("./kontextkit.css", import.meta.url).href }),
    );
    let panel = null;
    app.extensionManager.registerSidebarTab({
      id: "kontextkit",
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
    const show = badges(window.LGraphBadge);
    api.addEventListener("executed", ({ detail }) => {
      const node = app.graph.getNodeById(detail.display_node ?? detail.node);
      for (const badge of detail.output?.kontext_badge ?? []) if (node) show(node, badge);
    });
    api.addEventListener("execution_success", () => panel?.isConnected && fill(panel));
    await greet();
  },
});
