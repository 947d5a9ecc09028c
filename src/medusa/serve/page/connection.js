// Whether the server answers. The page asks /health again and again, more often while it is away.

import { health, modelName, Refused, useKey } from "./api.js";

const CALM = 5000; // milliseconds between two questions
const EAGER = 1500; // while the server does not answer

/** Follows the server, and shows its state. `parts` are the elements that show it. */
export class Connection {
  constructor(parts, onChange) {
    Object.assign(this, { parts, onChange });
    this.model = null;
    this.ready = false;
    this.timer = 0;
    parts.keyForm.addEventListener("submit", (event) => {
      event.preventDefault();
      useKey(parts.key.value.trim());
      this.check();
    });
  }

  /** Ask the server for its state, now and regularly from now on. */
  async check() {
    clearTimeout(this.timer);
    try {
      const state = await health();
      if (state.status === "ok") await this.found(state);
      else this.lost(`The server is not ready: ${state.reason ?? state.status}.`);
    } catch (error) {
      this.failed(error);
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.check(), this.ready ? CALM : EAGER);
  }

  async found(state) {
    if (this.model !== state.model) {
      this.model = await modelName();
      this.parts.keyForm.hidden = true;
    }
    const tree = state.tree_nodes > 1 ? `trees of ${state.tree_nodes} nodes` : "no Medusa heads";
    this.say(`${this.model}: ready, ${tree}`);
    this.warn("");
    this.change(true);
  }

  /** Show an error of a request, and find out whether the server is still there. */
  failed(error) {
    if (error instanceof Refused && error.status === 401) this.askKey();
    else if (error instanceof Refused) this.warn(error.message);
    else this.lost("The server does not answer. It may have been stopped, or the network is down.");
  }

  askKey() {
    this.model = null;
    this.parts.keyForm.hidden = false;
    this.warn("The server wants an API key; it is missing or wrong.");
    this.say("API key needed");
    this.change(false);
  }

  lost(reason) {
    this.model = null; // the server may come back with another model
    this.warn(`${reason} This page tries again until it is back.`);
    this.say("not connected");
    this.change(false);
  }

  /** Show the state. */
  say(text) {
    show(this.parts.state, text);
  }

  /** Show what is wrong; an empty text removes it. */
  warn(text) {
    show(this.parts.alert, text);
  }

  change(ready) {
    this.ready = ready;
    this.onChange();
  }
}

/** Show a text, unless it is there: screen readers hear only changes. */
function show(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
