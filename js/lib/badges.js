// A grade and its value as a coloured badge on the node that gave it.

const COLORS = [
  [/identical|excellent|high/i, "#2f7d32"],
  [/good|standard|acceptable/i, "#a86f00"],
  [/poor/i, "#b3261e"],
];
const OTHER = "#5f6368";

/** The background for a grade's name. */
export function colorOf(grade) {
  return COLORS.find(([words]) => words.test(grade))?.[1] ?? OTHER;
}

const shown = new WeakMap();

/** Shows what a node reports as `kontext_badge`. */
export function showBadge(node, { text, grade }) {
  const first = !shown.has(node);
  shown.set(node, new window.LGraphBadge({ text, fgColor: "white", bgColor: colorOf(grade) }));
  if (first) node.badges.push(() => shown.get(node));
  node.setDirtyCanvas(true);
}
