// Puts the page together: what the buttons do, and when they can be used.

import { Unreachable } from "./api.js";
import { Answer } from "./answer.js";
import { Connection } from "./connection.js";
import { Conversation } from "./conversation.js";
import { Panel } from "./panel.js";
import { Race } from "./race.js";
import { requestBody, validSettings } from "./settings.js";

const at = (id) => document.getElementById(id);
const [prompt, settings, send, race, stop] = ["prompt", "settings", "send", "race", "stop"].map(at);

const panel = new Panel(at("speed"), at("lengths"), at("tree"), at("tree-name"));
const conversation = new Conversation(
  ...["log", "composer", "welcome", "announcer"].map(at),
);
const parts = { state: at("state"), alert: at("alert"), keyForm: at("key-form"), key: at("key") };
const connection = new Connection(parts, update);
let running = null; // the AbortController of the answer under way

function update() {
  send.disabled = race.disabled = running !== null || !connection.ready;
  stop.disabled = running === null;
  at("clear").disabled = running !== null;
}

/** Return the request for a prompt, after what the conversation has so far. */
function bodyFor(text, medusa) {
  const messages = [...conversation.messages, { role: "user", content: text }];
  return requestBody(settings, connection.model, messages, medusa);
}

/** Answer the prompt in the field; `begin` returns the element of its turn and how to run it. */
async function answer(begin) {
  const text = prompt.value.trim();
  if (send.disabled || !text || !validSettings(settings)) return;
  running = new AbortController();
  update();
  const turn = begin(text);
  conversation.begin(text, turn.node);
  prompt.value = "";
  try {
    await turn.run(running.signal);
    conversation.keep(text, turn.answer.text);
  } catch (error) {
    ended(text, turn, error);
  } finally {
    running = null;
    if (document.activeElement === stop) prompt.focus();
    update();
  }
}

/** Show that an answer broke off, because of the user or of an error. */
function ended(text, turn, error) {
  if (error.name === "AbortError") {
    turn.remark("Stopped");
    if (turn.answer.text) conversation.keep(text, turn.answer.text);
    return;
  }
  turn.remark(error instanceof Unreachable ? "Broke off: the server went away" : error.message);
  prompt.value ||= text; // to send it again
  connection.failed(error);
  if (error instanceof Unreachable) connection.check();
}

function single(text) {
  const own = new Answer(panel);
  const body = bodyFor(text, at("medusa").checked);
  const run = (signal) => own.ask(body, signal);
  return { node: own.node, answer: own, run, remark: (note) => own.remark(note) };
}

function both(text) {
  const own = new Race(panel);
  const bodies = new Map([true, false].map((medusa) => [medusa, bodyFor(text, medusa)]));
  const run = (signal) => own.run((medusa) => bodies.get(medusa), signal);
  const remark = (note) => (own.result.textContent = `${note}.`);
  return { node: own.node, answer: own.lanes[0].answer, run, remark };
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  answer(single);
});
race.addEventListener("click", () => answer(both));
stop.addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", () => {
  conversation.clear();
  prompt.focus();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  answer(single);
});
for (const choice of document.querySelectorAll("input[name=view]")) {
  choice.addEventListener("change", () => (document.body.dataset.view = choice.value));
}
for (const example of document.querySelectorAll(".example")) {
  example.addEventListener("click", () => {
    prompt.value = example.textContent;
    prompt.focus();
  });
}
settings.addEventListener("submit", (event) => event.preventDefault());
document.body.dataset.view = document.querySelector("input[name=view]:checked").value;

update();
panel.draw();
connection.check();
