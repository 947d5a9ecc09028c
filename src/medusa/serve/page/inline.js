// Markdown within a line: code, emphasis and links, as DOM nodes.

import { element } from "./dom.js";

const SAFE = new Set(["http:", "https:", "mailto:"]);

// Each rule is a pattern that is tried at every place, and the function of what it finds.
const RULES = [
  [/\\([!-/:-@[-`{-~])/y, (found) => found[1]],
  [/(`+)(?!`)([\s\S]*?[^`])\1(?!`)/y, (found) => element("code", {}, found[2].trim() || found[2])],
  [/!?\[((?:[^[\]\\]|\\.)*)\]\(\s*<?([^\s()<>]*(?:\([^\s()]*\)[^\s()<>]*)*)>?(?:\s+"[^"]*")?\s*\)/y,
    (found) => link(found[2], inline(found[1]), found[0])],
  [/<((?:https?:\/\/|mailto:)[^\s<>]+)>/y, (found) => link(found[1], [found[1]], found[0])],
  [/https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)*_\]]/y, (found) => link(found[0], [found[0]], found[0])],
  [/(\*\*|__)(?=\S)([\s\S]*?\S)\1/y, (found) => element("strong", {}, ...inline(found[2]))],
  [/~~(?=\S)([\s\S]*?\S)~~/y, (found) => element("del", {}, ...inline(found[1]))],
  [/\*(?=[^\s*])([\s\S]*?[^\s*])\*(?!\*)/y, (found) => element("em", {}, ...inline(found[1]))],
  [/\b_(?=[^\s_])([\s\S]*?[^\s_])_\b/y, (found) => element("em", {}, ...inline(found[1]))],
  [/\n/y, () => element("br")],
];
const BEGIN = /[\\`![<h*_~\n]/; // characters that a rule can begin with

/** Return the nodes of a text without blocks. */
export function inline(text) {
  const nodes = [];
  let plain = "";
  for (let place = 0; place < text.length;) {
    const [node, length] = BEGIN.test(text[place]) ? ruled(text, place) : [null, 0];
    if (node === null) {
      plain += text[place++];
      continue;
    }
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
    place += length;
  }
  return plain ? [...nodes, plain] : nodes;
}

/** Return what the first rule that matches at a place makes, and the length that it takes. */
function ruled(text, place) {
  for (const [pattern, made] of RULES) {
    pattern.lastIndex = place;
    const found = pattern.exec(text);
    if (found) return [made(found), found[0].length];
  }
  return [null, 0];
}

/** Return a link; the text as it was written where the address could run code. */
function link(address, children, written) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return written;
  }
  if (!SAFE.has(url.protocol)) return written;
  const rules = { target: "_blank", rel: "noopener noreferrer nofollow" };
  return element("a", { href: url.href, ...rules }, ...children);
}
