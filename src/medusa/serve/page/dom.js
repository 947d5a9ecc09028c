// Short ways to make elements. Texts become text nodes, so that they are never read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** Return a new HTML element; attributes that are null, undefined or false are left out. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** Return a new SVG element. */
export function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value);
    }
  }
  node.append(...children);
  return node;
}

/** Return a text that only screen readers get. */
export function spoken(text) {
  return element("span", { class: "spoken" }, text);
}

/** Return the text of a token with its white space made visible. */
export function visible(text) {
  if (text === "") return "(empty)";
  const shown = text.replaceAll("\r", "").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  return shown.trim() === "" ? shown.replaceAll(" ", "␣") : shown;
}
