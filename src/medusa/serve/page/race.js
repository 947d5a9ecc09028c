// The same prompt with Medusa and without it, side by side. One answer runs after the other: two
// requests at the same time would share the server's steps, and neither would show its own speed.
// Medusa goes first, so that whatever the server does once for a prompt counts against Medusa.

import { Answer } from "./answer.js";
import { rounded } from "./chart.js";
import { element } from "./dom.js";

const LANES = [
  ["Medusa", true],
  ["Plain decoding", false],
];

/** A race, whose answers stand in `node`. */
export class Race {
  constructor(panel) {
    this.lanes = LANES.map(([name, medusa]) => new Lane(name, medusa, panel));
    this.result = element("p", { class: "result" });
    const lanes = element("div", { class: "lanes" }, ...this.lanes.map((lane) => lane.node));
    this.node = element("div", { class: "race" }, lanes, this.result);
  }

  /** Run both; `bodyFor(medusa)` returns the request. Return the answer with Medusa. */
  async run(bodyFor, signal) {
    for (const lane of this.lanes) {
      await lane.answer.ask(bodyFor(lane.medusa), signal);
      const fastest = Math.max(...this.lanes.map((each) => each.answer.figures.speed));
      for (const each of this.lanes) each.measure(fastest);
    }
    this.result.textContent = this.verdict();
    return this.lanes[0].answer;
  }

  verdict() {
    const [medusa, plain] = this.lanes.map((lane) => lane.answer);
    const [fast, slow] = [medusa.figures.speed, plain.figures.speed];
    if (!fast || !slow) return "The answers are too short to compare their speed.";
    const same = medusa.text === plain.text ? "The texts are the same." : "The texts differ.";
    const speeds = `Medusa ${rounded(fast)} tokens/s, plain decoding ${rounded(slow)} tokens/s`;
    return `${speeds}: ${(fast / slow).toFixed(2)} times as fast. ${same}`;
  }
}

/** One side of a race. */
class Lane {
  constructor(name, medusa, panel) {
    this.medusa = medusa;
    this.answer = new Answer(panel);
    this.answer.remark("Waits for its turn");
    this.bar = element("span", { class: medusa ? "fill fast" : "fill" });
    this.speed = element("span", { class: "speed" }, "–");
    const bar = element("span", { class: "track", "aria-hidden": "true" }, this.bar);
    const head = element("p", { class: "lane-head" }, bar, this.speed);
    const title = element("h3", {}, name);
    this.node = element("section", { "aria-label": name }, title, head, this.answer.node);
  }

  /** Show the speed, as a bar beside that of the fastest. */
  measure(fastest) {
    const { speed } = this.answer.figures;
    if (!speed) return;
    this.bar.style.width = `${(100 * speed) / fastest}%`;
    this.speed.textContent = `${rounded(speed)} tokens/s`;
  }
}
