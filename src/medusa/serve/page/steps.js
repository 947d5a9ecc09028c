// An answer as its steps: the tokens that a step accepted from its tree are coloured, with two
// colours in turn; the token that the base model added is plain. One stop of the Tab key, then
// arrow keys, reach every step.

import { element } from "./dom.js";
import { hideTip, leaveTip, showTip } from "./tip.js";

const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

/** The steps of an answer. `onInspect(step)` is called for a step that is pointed at or focused. */
export class Steps {
  constructor(onInspect) {
    const label = "Answer by steps. Arrow keys move between steps.";
    this.node = element("div", { class: "steps", role: "list", "aria-label": label });
    this.found = new Map(); // the step that each element shows
    this.inspect = (target) => {
      const step = this.found.get(target);
      if (!step) return;
      showTip(step, target);
      onInspect(step);
    };
    const of = (event) => event.target.closest(".step");
    this.node.addEventListener("mouseover", (event) => this.inspect(of(event)));
    this.node.addEventListener("mouseleave", leaveTip);
    this.node.addEventListener("focusin", (event) => this.focused(of(event)));
    this.node.addEventListener("focusout", hideTip);
    this.node.addEventListener("keydown", (event) => this.pressed(event));
  }

  /** Append steps, as the server describes them. */
  add(steps) {
    const made = steps.map((step) => this.shown(step));
    this.node.append(...made);
    if (this.current === undefined && made.length) this.enter(made[0]);
  }

  shown(step) {
    const texts = (accepted) => {
      const own = step.tokens.filter((token) => token.accepted === accepted);
      return own.map((token) => token.text).join("");
    };
    const turn = step.step % 2 ? "odd" : "even";
    const node = element(
      "span",
      { class: `step ${turn}`, role: "listitem", tabindex: -1, "aria-describedby": "tip" },
      element("span", { class: "accepted" }, texts(true)),
      element("span", { class: "own" }, texts(false)),
    );
    this.found.set(node, step);
    return node;
  }

  /** Let the Tab key reach this step. */
  enter(node) {
    this.current?.setAttribute("tabindex", -1);
    node.setAttribute("tabindex", 0);
    this.current = node;
  }

  focused(node) {
    if (!node) return;
    this.enter(node);
    this.inspect(node);
  }

  pressed(event) {
    const all = this.node.children;
    let target = null;
    if (event.key === "Home") target = all[0];
    else if (event.key === "End") target = all[all.length - 1];
    else if (event.key in MOVES) {
      target = all[[...all].indexOf(event.target) + MOVES[event.key]];
    } else return;
    event.preventDefault();
    target?.focus();
  }
}
