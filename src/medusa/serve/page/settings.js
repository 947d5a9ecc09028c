// The settings of requests, read from the form on the page. Empty fields are not sent.

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"];

/** Return whether all settings are valid; otherwise show the first that is not. */
export function validSettings(form) {
  if (form.checkValidity()) return true;
  form.closest("details").open = true;
  form.reportValidity();
  return false;
}

/** Return the body of a request for the messages of a conversation. */
export function requestBody(form, model, messages, medusa) {
  const given = new FormData(form);
  const body = { model, messages: [...messages], medusa: { enabled: medusa, steps: true } };
  const system = given.get("system").trim();
  if (system) body.messages.unshift({ role: "system", content: system });
  for (const name of NUMBERS) {
    if (given.get(name) !== "") body[name] = Number(given.get(name));
  }
  return body;
}
