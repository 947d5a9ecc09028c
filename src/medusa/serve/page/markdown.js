// A small Markdown renderer. It makes DOM nodes, so that a model's text is never read as HTML.
// Line breaks and indents in a paragraph stay, because models rely on them. Pictures become links:
// the page loads nothing from elsewhere.

import { element } from "./dom.js";
import { inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(\s+|$)/;
const DELIMITERS = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 12; // of quotes and lists in each other

/** Return the rendered text; headings begin at h3, below those of the page. */
export function markdown(text) {
  const fragment = document.createDocumentFragment();
  fragment.append(...blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0));
  return fragment;
}

/** Return the elements of lines. Each reader takes lines from the front, or returns null. */
function blocks(lines, depth) {
  const nested = depth < DEEPEST ? [quote, list] : [];
  const readers = [code, heading, rule, ...nested, table, paragraph];
  const nodes = [];
  for (let rest = lines; rest.length;) {
    if (rest[0].trim() === "") {
      rest = rest.slice(1);
      continue;
    }
    for (const read of readers) {
      const found = read(rest, depth);
      if (!found) continue;
      nodes.push(found[0]);
      rest = rest.slice(found[1]);
      break;
    }
  }
  return nodes;
}

function code(lines) {
  const fence = FENCE.exec(lines[0]);
  if (!fence) return null;
  const closing = new RegExp(`^ {0,3}${fence[1][0]}{${fence[1].length},}\\s*$`);
  const end = lines.findIndex((line, place) => place > 0 && closing.test(line));
  const inside = lines.slice(1, end < 0 ? lines.length : end); // a stream may not have ended it yet
  const attributes = { tabindex: 0, role: "region", "aria-label": `Code ${fence[2]}`.trim() };
  const node = element("pre", attributes, element("code", {}, inside.join("\n")));
  return [node, inside.length + 2];
}

function heading(lines) {
  const found = HEADING.exec(lines[0]);
  if (!found) return null;
  return [element(`h${Math.min(6, found[1].length + 2)}`, {}, ...inline(found[2])), 1];
}

function rule(lines) {
  return RULE.test(lines[0]) ? [element("hr"), 1] : null;
}

function quote(lines, depth) {
  const count = leading(lines, (line) => QUOTE.test(line));
  if (!count) return null;
  const inside = lines.slice(0, count).map((line) => line.replace(QUOTE, ""));
  return [element("blockquote", {}, ...blocks(inside, depth + 1)), count];
}

function list(lines, depth) {
  const first = ITEM.exec(lines[0]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let count = 0;
  while (count < lines.length) {
    const found = ITEM.exec(lines[count]);
    if (!found || /\d/.test(found[2]) !== ordered || RULE.test(lines[count])) break;
    const [item, taken] = listItem(lines.slice(count), found, depth);
    items.push(item);
    count += taken;
  }
  if (!count) return null;
  const start = ordered && parseInt(first[2], 10) !== 1 ? parseInt(first[2], 10) : null;
  return [element(ordered ? "ol" : "ul", { start }, ...items), count];
}

/** Return an item and the number of its lines: those indented below its mark, or no new block. */
function listItem(lines, found, depth) {
  const [mark] = found;
  const indent = found[1].length + found[2].length + 1;
  const inside = [lines[0].slice(mark.length)];
  for (const line of lines.slice(1)) {
    const spaces = line.search(/\S|$/);
    const previous = inside[inside.length - 1];
    if (line.trim() !== "" && spaces < Math.min(indent, 2)) {
      if (previous.trim() === "" || opens(line)) break;
    }
    inside.push(line.slice(Math.min(spaces, indent)));
  }
  const nodes = blocks(inside, depth + 1);
  // an item of one paragraph is written without one, which keeps the list tight
  const tight = nodes[0]?.localName === "p" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes;
  return [element("li", {}, ...tight), inside.length];
}

function table(lines) {
  if (lines.length < 2 || !lines[0].includes("|") || !DELIMITERS.test(lines[1])) return null;
  const head = cells(lines[0]);
  const places = cells(lines[1]).map(alignment);
  if (head.length !== places.length) return null;
  const count = 2 + leading(lines.slice(2), (line) => line.includes("|"));
  const row = (line, tag) => {
    const own = cells(line);
    const scope = tag === "th" ? "col" : null;
    const filled = places.map((place, column) =>
      element(tag, { scope, class: place }, ...inline(own[column] ?? "")));
    return element("tr", {}, ...filled);
  };
  const body = lines.slice(2, count).map((line) => row(line, "td"));
  const parts = [element("thead", {}, row(lines[0], "th")), element("tbody", {}, ...body)];
  const box = { class: "table", tabindex: 0, role: "region", "aria-label": "Table" };
  return [element("div", box, element("table", {}, ...parts)), count];
}

/** Return the cells of a table's line; a | after a backslash belongs to a cell. */
function cells(line) {
  const inside = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inside.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function alignment(mark) {
  if (!mark.endsWith(":")) return null;
  return mark.startsWith(":") ? "centre" : "right";
}

function paragraph(lines) {
  const more = leading(lines.slice(1), (line) => line.trim() !== "" && !opens(line));
  const text = lines.slice(0, more + 1).map((line) => line.trimEnd()).join("\n");
  return [element("p", {}, ...inline(text.trimStart())), more + 1];
}

/** Return whether a line begins a block that ends a paragraph. */
function opens(line) {
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((pattern) => pattern.test(line));
}

/** Return how many lines from the front fulfil a condition. */
function leading(lines, condition) {
  const end = lines.findIndex((line) => !condition(line));
  return end < 0 ? lines.length : end;
}
