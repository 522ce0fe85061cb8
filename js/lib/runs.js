// The last runs as a chart: a bar a run, as long as it took, in parts of computed, kept and skipped passes.

import { drawn, element } from "./dom.js";

const WIDTH = 260;
const BAR = 12;
const ROW = 34;
const PARTS = [
  ["computed", "var(--kontext-computed)"],
  ["kept", "var(--kontext-kept)"],
  ["skipped", "var(--kontext-skipped)"],
];

/** "2.3 s, 8.1 GB, 17 of 28 passes skipped, SSIM 0.962": what is known of a run. */
export function runInWords(run) {
  const words = [];
  if (run.seconds !== undefined) words.push(`${run.seconds.toFixed(run.seconds < 10 ? 1 : 0)} s`);
  if (run.peak_gb !== undefined) words.push(`${run.peak_gb.toFixed(1)} GB`);
  const passes = PARTS.reduce((sum, [name]) => sum + (run[name] ?? 0), 0);
  if (passes) words.push(`${run.skipped} of ${passes} passes skipped`);
  if (run.ssim !== undefined) words.push(`SSIM ${run.ssim.toFixed(3)}`);
  return words.join(", ");
}

/** [{x, width, color}] of a run's bar, in pixels, where the longest run takes the whole width. */
export function barOf(run, longest) {
  const passes = PARTS.reduce((sum, [name]) => sum + (run[name] ?? 0), 0);
  const whole = longest ? (WIDTH * (run.seconds ?? 0)) / longest : 0;
  let x = 0;
  return PARTS.filter(([name]) => run[name]).map(([name, color]) => {
    const part = { x, width: (whole * run[name]) / passes, color };
    x += part.width;
    return part;
  });
}

/** The newest run first. */
export function runsSection(runs) {
  const newest = [...runs].reverse();
  const section = element("section", { class: "kontext-runs" }, element("h3", {}, "Last runs"));
  if (!newest.length) {
    section.append(element("p", { class: "kontext-quiet" }, "None yet: runs through Optimize Kontext appear here."));
    return section;
  }
  const longest = Math.max(...newest.map((run) => run.seconds ?? 0));
  const size = { width: WIDTH, height: ROW * newest.length, viewBox: `0 0 ${WIDTH} ${ROW * newest.length}` };
  const chart = drawn("svg", { ...size, role: "img", "aria-label": "Seconds of the last runs" });
  newest.forEach((run, i) => {
    const y = i * ROW;
    for (const { x, width, color } of barOf(run, longest)) {
      chart.append(drawn("rect", { x, y: y + 16, width, height: BAR, fill: color }));
    }
    chart.append(drawn("text", { x: 0, y: y + 11 }, runInWords(run)));
  });
  section.append(chart, legend());
  return section;
}

function legend() {
  const parts = PARTS.map(([name, color]) =>
    element("span", {}, element("i", { style: `background: ${color}` }), name === "kept" ? "references kept" : name),
  );
  return element("p", { class: "kontext-legend" }, ...parts);
}
