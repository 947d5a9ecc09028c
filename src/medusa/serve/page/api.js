// Requests to the server that this page comes from. Addresses are relative, so that the page also
// works behind a proxy that adds a path.

import { events } from "./sse.js";

const KEY = "medusa-api-key";
const GATEWAY = new Set([502, 504]);

/** The server cannot be reached, or the connection to it broke off. */
export class Unreachable extends Error {}

/** The server refused a request, and says why. */
export class Refused extends Error {
  constructor(status, message, seconds) {
    const wait = seconds ? ` Try again in ${seconds} seconds.` : "";
    super(message + wait);
    this.status = status;
  }
}

/** Remember the API key until the browser's tab is closed. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** Return the body of /health: {status, model, tree_nodes, ...}, also where the status is 503. */
export async function health() {
  const response = await reached("health", { signal: AbortSignal.timeout(5000) });
  return response.json().catch(() => ({ status: `status ${response.status}` }));
}

/** Return the name of the model that the server offers. */
export async function modelName() {
  const response = await checked("v1/models", {});
  return (await response.json()).data[0].id;
}

/** Yield the chunks of a chat completion. */
export async function* chat(request, signal) {
  const response = await checked("v1/chat/completions", {
    method: "POST",
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    headers: { "Content-Type": "application/json" },
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(null, chunk.error.message);
      yield chunk;
    }
  } catch (error) {
    throw brokenOff(error);
  }
  throw new Unreachable("The server ended the answer early.");
}

async function checked(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await reached(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const message = body?.error?.message ?? `The server answered with status ${response.status}.`;
  throw new Refused(response.status, message, response.headers.get("Retry-After"));
}

async function reached(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw brokenOff(error);
  }
  if (GATEWAY.has(response.status)) throw new Unreachable("The server does not answer.");
  return response;
}

/** Return the error to report for one of fetch: a TypeError is how it reports a lost connection. */
function brokenOff(error) {
  const lost = error instanceof TypeError || error.name === "TimeoutError";
  return lost ? new Unreachable("The server does not answer.") : error;
}
