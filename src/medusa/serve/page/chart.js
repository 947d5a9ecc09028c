// Charts of an answer's steps, drawn anew for each frame.

import { drawn } from "./dom.js";

const WIDTH = 340;
const HEIGHT = 96;
const LEFT = 38; // room for the numbers of the axis
const TOP = 8;
const BOTTOM = 6;
const MOST = 120; // of the last steps

/** Return a chart of values; `kind` is "line" or "bars". */
export function chart(values, kind, label) {
  const shown = values.slice(-MOST);
  const top = ceiling(Math.max(1, ...shown));
  const y = (value) => HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * value) / top;
  const slot = (WIDTH - LEFT) / Math.max(20, shown.length);
  const x = (place) => LEFT + slot * (place + 0.5);
  const marks = kind === "line" ? line(shown, x, y) : bars(shown, x, y, slot);
  const attributes = {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    role: "img",
    "aria-label": inWords(values, label),
    class: `chart ${kind}`,
  };
  return drawn("svg", attributes, ...[0, top / 2, top].flatMap((each) => axis(each, y)), ...marks);
}

/** Return the chart's content in words. */
function inWords(values, label) {
  if (!values.length) return `${label}: no steps yet.`;
  const [low, high] = [Math.min(...values), Math.max(...values)].map(rounded);
  const last = rounded(values[values.length - 1]);
  return `${label} over ${values.length} steps: from ${low} to ${high}, now ${last}.`;
}

function line(values, x, y) {
  if (!values.length) return [];
  const points = values.map((value, place) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`);
  const last = values.length - 1;
  return [
    drawn("polyline", { points: points.join(" ") }),
    drawn("circle", { cx: x(last), cy: y(values[last]), r: 3 }),
  ];
}

function bars(values, x, y, slot) {
  const width = Math.max(1, slot - 1);
  return values.map((value, place) =>
    drawn("rect", { x: x(place) - width / 2, y: y(value), width, height: y(0) - y(value) }));
}

function axis(value, y) {
  return [
    drawn("line", { x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }),
    drawn("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, rounded(value)),
  ];
}

/** Return the next number of the form 1, 2, 4, 6, 8 or 10 times a power of ten. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((each) => each * power >= value - 1e-9);
}

/** Return a number with three digits at most after which none matter. */
export function rounded(value) {
  return value >= 10 ? Math.round(value).toString() : (Math.round(value * 10) / 10).toString();
}
