// The panel beside the conversation: charts of the latest answer, and the tree of a step.

import { chart } from "./chart.js";
import { element } from "./dom.js";
import { described, treeDrawing } from "./tree.js";

/** The charts and the tree. */
export class Panel {
  constructor(speed, lengths, tree, treeName) {
    Object.assign(this, { speed, lengths, tree, treeName });
    this.figures = null;
  }

  /** Show an answer from now on. */
  follow(figures) {
    this.figures = figures;
    this.draw();
  }

  /** Draw the charts, and the tree of the last step. */
  draw() {
    const speeds = this.figures?.speeds ?? [];
    const lengths = this.figures?.lengths ?? [];
    this.speed.replaceChildren(chart(speeds, "line", "Tokens per second"));
    this.lengths.replaceChildren(chart(lengths, "bars", "Tokens per step"));
    const last = this.figures?.steps.at(-1);
    if (last) this.inspect(last);
  }

  /** Draw the tree of a step. */
  inspect(step) {
    this.treeName.textContent = described(step);
    if (step.candidates.length > 1) {
      this.tree.replaceChildren(treeDrawing(step, this.tree.clientWidth));
    } else {
      this.tree.replaceChildren(element("p", { class: "hint" }, "No tree in this step."));
    }
  }
}
