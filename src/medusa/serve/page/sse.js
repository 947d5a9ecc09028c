// Reading of an event stream (text/event-stream) as the HTML standard defines it.

/** Yield the data of each event of a response's body. */
export async function* events(body) {
  let data = [];
  for await (const line of lines(body)) {
    if (line === "") {
      if (data.length) yield data.join("\n");
      data = [];
    } else {
      const [field, value] = parted(line);
      if (field === "data") data.push(value);
    }
  }
}

/** Return the field and the value of a line. A comment, such as ": keep-alive", has no field. */
function parted(line) {
  const colon = line.indexOf(":");
  if (colon < 0) return [line, ""];
  return [line.slice(0, colon), line.slice(colon + 1).replace(/^ /, "")];
}

/** Yield the lines of a stream of bytes, which end with CRLF, LF or CR. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      // a CR at the end of a chunk may be the first half of a CRLF
      const found = (rest + value).split(/\r\n|\n|\r(?!$)/);
      rest = found.pop();
      yield* found;
    }
    if (rest.endsWith("\r")) yield rest.slice(0, -1);
  } finally {
    reader.cancel().catch(() => {});
  }
}
