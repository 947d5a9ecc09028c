// The box that shows a step's candidates beside it. The pointer may move into the box, and Escape
// closes it.

import { element, spoken, visible } from "./dom.js";

const MOST = 14; // candidates shown of each depth
const PATIENCE = 200; // milliseconds in which the pointer may move from the step into the box

const tip = element("div", { id: "tip", role: "tooltip", hidden: true });
let anchor = null;
let leaving = 0;

document.body.append(tip);
tip.addEventListener("mouseenter", () => clearTimeout(leaving));
tip.addEventListener("mouseleave", leaveTip);
document.addEventListener("keydown", (event) => event.key === "Escape" && hideTip());
document.addEventListener("scroll", place, { capture: true, passive: true });
addEventListener("resize", hideTip);

/** Show the candidates of a step beside its element. */
export function showTip(step, node) {
  clearTimeout(leaving);
  if (anchor === node && !tip.hidden) return;
  anchor = node;
  tip.replaceChildren(element("p", { class: "head" }, title(step)), ...depths(step));
  tip.hidden = false;
  place();
}

/** Hide the box soon, unless the pointer moves into it. */
export function leaveTip() {
  clearTimeout(leaving);
  leaving = setTimeout(() => !anchor?.matches(":focus") && hideTip(), PATIENCE);
}

/** Hide the box. */
export function hideTip() {
  clearTimeout(leaving);
  tip.hidden = true;
}

function title(step) {
  const time = `${step.milliseconds.toFixed(1)} ms`;
  const { candidates, accepted } = counted(step);
  if (step.step === 0) return `Step 0, ${time}: the model read the prompt and chose a token.`;
  if (!candidates) return `Step ${step.step}, ${time}: plain decoding, no candidates.`;
  return `Step ${step.step}, ${time}: ${accepted} of ${candidates} candidates accepted.`;
}

/** Return the numbers of a step's candidates, without the root, and of those accepted. */
export function counted(step) {
  const own = step.candidates.slice(1);
  return { candidates: own.length, accepted: own.filter((each) => each.accepted).length };
}

/** Return a line for each depth of the tree, and one for the model's own token. */
function depths(step) {
  const lines = [];
  const deepest = Math.max(0, ...step.candidates.map((each) => each.depth));
  for (let depth = 1; depth <= deepest; depth++) {
    const own = step.candidates.filter((each) => each.depth === depth);
    lines.push(line(`Token ${depth}`, own));
  }
  const last = step.tokens.filter((token) => !token.accepted);
  if (last.length) lines.push(line("Model's own", last, "own"));
  return lines;
}

function line(name, candidates, kind) {
  const texts = new Map(); // the same text may stand in several branches
  for (const each of candidates) texts.set(each.text, texts.get(each.text) || each.accepted);
  const ordered = [...texts].sort((one, other) => Number(other[1]) - Number(one[1]));
  const marks = ordered.slice(0, MOST).flatMap(([text, accepted]) => [
    mark(text, kind ?? (accepted ? "yes" : "no")),
    " ",
  ]);
  const left = ordered.length - MOST;
  if (left > 0) marks.push(`and ${left} more`);
  return element("div", { class: "depth" }, element("span", { class: "name" }, name),
    element("span", { class: "texts" }, ...marks));
}

function mark(text, kind) {
  const names = { yes: ["✓", "accepted: "], no: ["✗", "refused: "], own: ["", ""] };
  const [sign, name] = names[kind];
  const shown = element("span", { class: "text" }, visible(text));
  return element("span", { class: `mark ${kind}` },
    element("span", { "aria-hidden": "true" }, sign), spoken(name), shown);
}

/** Put the box below the step, or above where there is more room, within the window. */
function place() {
  if (tip.hidden) return;
  const [first] = anchor.getClientRects();
  if (!anchor.isConnected || !first) return hideTip();
  const { width, height } = tip.getBoundingClientRect();
  const view = document.documentElement;
  const above = first.bottom + height > view.clientHeight && first.top > height;
  const left = Math.min(first.left, view.clientWidth - width - 8);
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above ? first.top - height - 4 : first.bottom + 4}px`;
}
