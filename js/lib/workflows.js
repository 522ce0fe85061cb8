// The bundled workflows: which there are, and how one is opened.

import { element } from "./dom.js";

/** The pack's folder among custom_nodes, from the address of one of its scripts: ComfyUI lists templates by it. */
export function packOf(address) {
  const parts = new URL(address).pathname.split("/");
  return decodeURIComponent(parts[parts.indexOf("extensions") + 1]);
}

/** "kontext_multi_reference" -> "Multi reference" */
export function titleOf(name) {
  const words = name.replace(/^kontext_/, "").replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** [[heading, [{name, title, words}]]]: those of machines and purposes as the server describes them, then the rest. */
export function sorted(names, described) {
  const known = new Set(Object.values(described).flatMap((some) => some.map(({ name }) => name)));
  const rest = names.filter((name) => !known.has(name)).sort();
  const groups = Object.entries(described).map(([heading, some]) => [
    heading,
    some.filter(({ name }) => names.includes(name)),
  ]);
  return [["Tasks", rest.map((name) => ({ name, title: titleOf(name), words: "" }))], ...groups];
}

/** Of a tier's workflow. */
export function nameOf(tier) {
  return `kontext_tier_${tier.slug}`;
}

/** A button for each; open: (name) => what a click does; mine: the one for this machine. */
export function workflowsSection(groups, open, mine) {
  const section = element("section", { class: "kontext-workflows" }, element("h3", {}, "Workflows"));
  for (const [heading, some] of groups) {
    section.append(element("h4", {}, heading));
    for (const { name, title, words } of some) {
      const text = name === mine ? `${title} - this machine` : title;
      section.append(element("button", { "data-workflow": name, title: words, click: () => open(name) }, text));
    }
  }
  return section;
}
