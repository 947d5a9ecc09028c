// The candidate tree of a step as a drawing: the root at the left, the accepted path thick.

import { drawn, visible } from "./dom.js";
import { counted } from "./tip.js";

const LINE = 17; // pixels from leaf to leaf
const MARGIN = 10;
const LONGEST = 9; // letters of a token's text

/** Return the drawing of a step's tree for a box of this width. */
export function treeDrawing(step, width) {
  const nodes = placed(step.candidates, width);
  const height = MARGIN * 2 + Math.max(...nodes.map((node) => node.y));
  const right = Math.max(width, ...nodes.map((node) => node.x + 60));
  const edges = nodes.slice(1).map((node) => edge(nodes[node.parent], node));
  edges.sort((one, other) => one.classList.contains("yes") - other.classList.contains("yes"));
  return drawn("svg", { width: right, height, role: "img", "aria-label": described(step) },
    ...edges, ...nodes.map(dot));
}

/** Return a step's tree in words. */
export function described(step) {
  const { candidates, accepted } = counted(step);
  if (!candidates) return `Step ${step.step} verified no candidates.`;
  const texts = step.candidates.slice(1).filter((each) => each.accepted).map((each) => each.text);
  const path = accepted ? `: “${visible(texts.join(""))}”` : "";
  return `Step ${step.step}: ${candidates} candidates, ${accepted} accepted${path}.`;
}

/** Return the candidates with coordinates; a parent stands at the mean height of its children. */
function placed(candidates, width) {
  const nodes = candidates.map((each) => ({ ...each, children: [] }));
  nodes.slice(1).forEach((node) => nodes[node.parent].children.push(node));
  const deepest = Math.max(...nodes.map((node) => node.depth));
  const across = Math.max(62, (width - 70) / Math.max(1, deepest));
  let leaves = 0;
  const place = (node) => {
    node.children.forEach(place);
    const own = node.children.map((child) => child.y);
    const mean = own.reduce((sum, y) => sum + y, 0) / own.length;
    node.y = own.length ? mean : MARGIN + LINE * leaves++;
    node.x = MARGIN + across * node.depth;
  };
  place(nodes[0]);
  return nodes;
}

function edge(from, to) {
  const half = (from.x + to.x) / 2;
  const line = `M${from.x},${from.y} C${half},${from.y} ${half},${to.y} ${to.x},${to.y}`;
  return drawn("path", { d: line, class: to.accepted ? "edge yes" : "edge no" });
}

function dot(node) {
  const text = visible(node.text);
  const shown = text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text;
  return drawn("g", { class: node.accepted ? "node yes" : "node no" },
    drawn("title", {}, text),
    drawn("circle", { cx: node.x, cy: node.y, r: node.accepted ? 4.5 : 3 }),
    drawn("text", { x: node.x + 7, y: node.y + 4 }, shown));
}
