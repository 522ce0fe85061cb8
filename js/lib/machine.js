// This machine in words: what /kontextkit/machine says, as a section of the sidebar.

import { element } from "./dom.js";

const GB = 1e9;

/** "NVIDIA GeForce RTX 4090, 25.3 GB"; "The processor, 8 cores, 16.0 GB RAM" */
export function machineName({ kind, name, card_bytes, host_bytes }) {
  const memory = kind === "cpu" ? `${(host_bytes / GB).toFixed(1)} GB RAM` : `${(card_bytes / GB).toFixed(1)} GB`;
  return `${name.charAt(0).toUpperCase()}${name.slice(1)}, ${memory}`;
}

/** The machine, its tier and why. */
export function machineSection(facts) {
  return element(
    "section",
    { class: "kontext-machine" },
    element("h3", {}, "This machine"),
    element("p", {}, machineName(facts.machine)),
    element("p", {}, "Tier: ", element("strong", {}, facts.tier.name)),
    ...facts.reasons.map((reason) => element("p", { class: "kontext-quiet" }, reason)),
  );
}

/** What speeds the pack up, whether it is there, and the command that brings it. */
export function installedSection(facts) {
  return element(
    "section",
    { class: "kontext-installed" },
    element("h3", {}, "Installed"),
    element("table", {}, element("tbody", {}, ...facts.installed.map(row))),
  );
}

function row({ name, there, words, command }) {
  const more = command ? element("code", {}, command) : words;
  return element(
    "tr",
    {},
    element("td", {}, name),
    element("td", { class: there ? "kontext-yes" : "kontext-no" }, there ? "yes" : "no"),
    element("td", { class: "kontext-quiet" }, there ? "" : more),
  );
}
