// One answer on the page: as steps, as formatted text, and its figures.

import { chat } from "./api.js";
import { element } from "./dom.js";
import { Figures } from "./figures.js";
import { markdown } from "./markdown.js";
import { Steps } from "./steps.js";

/** An answer. `panel` shows its charts and its tree while it arrives. */
export class Answer {
  constructor(panel) {
    this.panel = panel;
    this.text = "";
    this.figures = new Figures();
    this.waiting = []; // steps that the next frame shows
    this.frame = 0;
    this.steps = new Steps((step) => panel.inspect(step));
    this.formatted = element("div", { class: "formatted" });
    this.note = element("p", { class: "note" });
    this.node = element("div", { class: "answer" }, this.steps.node, this.formatted, this.note);
  }

  /** Ask the server and show what arrives; return when the answer has ended.
   *
   * Throws the errors of `chat`, and an AbortError if the signal aborts.
   */
  async ask(request, signal) {
    this.panel.follow(this.figures);
    this.note.textContent = "Waiting for the first token";
    this.node.setAttribute("aria-busy", "true");
    try {
      for await (const chunk of chat(request, signal)) this.take(chunk);
    } finally {
      cancelAnimationFrame(this.frame);
      this.node.removeAttribute("aria-busy");
      this.show();
      this.note.textContent = this.figures.inWords(this.usage);
    }
  }

  take(chunk) {
    this.text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.medusa) {
      this.figures.add(chunk.medusa, performance.now());
      this.waiting.push(chunk.medusa);
    }
    // drawing once a frame leaves the browser time to read what arrives
    this.frame ||= requestAnimationFrame(() => {
      this.show();
      this.note.textContent = this.figures.inWords();
    });
  }

  show() {
    this.frame = 0;
    this.steps.add(this.waiting);
    this.waiting = [];
    this.formatted.replaceChildren(markdown(this.text));
    this.panel.draw();
    this.node.dispatchEvent(new CustomEvent("grow", { bubbles: true }));
  }

  /** Append a remark to the figures. */
  remark(text) {
    const before = this.figures.first === null ? "" : `${this.note.textContent} · `;
    this.note.textContent = before + text;
  }
}
