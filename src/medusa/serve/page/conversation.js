// The conversation: turns on the page, and the messages that go with the next request.

import { element } from "./dom.js";

const NEAR = 80; // pixels from the end within which the page follows the answer

/** The conversation in an element above the composer; `announcer` reads answers to screen readers. */
export class Conversation {
  constructor(log, composer, welcome, announcer) {
    Object.assign(this, { log, composer, welcome, announcer });
    this.messages = [];
    log.addEventListener("grow", () => this.follow());
    document.addEventListener("scroll", () => this.look(), { capture: true, passive: true });
  }

  /** Append the user's prompt and the element of its answer. */
  begin(prompt, answer) {
    this.welcome.hidden = true;
    const own = element("article", { class: "turn user", "aria-label": "You" },
      element("h2", {}, "You"), element("p", { class: "prompt" }, prompt));
    const reply = element("article", { class: "turn reply", "aria-label": "Answer" },
      element("h2", {}, "Answer"), answer);
    this.log.append(own, reply);
    this.away = false;
    this.follow();
  }

  /** Keep a finished turn for the next requests, and have it read aloud. */
  keep(prompt, text) {
    this.messages.push({ role: "user", content: prompt }, { role: "assistant", content: text });
    this.announcer.textContent = `Answer: ${text}`;
  }

  /** Pixels of the conversation's end that the composer hides. */
  get below() {
    const end = this.log.lastElementChild.getBoundingClientRect().bottom;
    return end - this.composer.getBoundingClientRect().top;
  }

  /** Note whether the reader has scrolled away from the end. */
  look() {
    this.away = this.below > NEAR || this.composer.getBoundingClientRect().top < 0;
  }

  /** Scroll to the end, unless the reader has scrolled away from it. */
  follow() {
    if (this.away) return;
    this.log.scrollTop += Math.max(0, this.below); // on a wide window the conversation scrolls,
    window.scrollBy(0, Math.max(0, this.below)); // on a narrow one the page does
  }

  /** Begin anew. */
  clear() {
    this.messages = [];
    this.announcer.textContent = "";
    for (const turn of this.log.querySelectorAll(".turn")) turn.remove();
    this.welcome.hidden = false;
  }
}
