// Short names for the document.

export const $ = (selector, within = document) => within.querySelector(selector);

/** The state of the page as data of its root element, for style.css and for tests. */
export const state = document.documentElement.dataset;

/** Make an element: `el("p", { className: "note" }, "text", child)`. Keys with a dash become attributes. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

/** Set the text of an element, and touch the document only where it changes. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Whether the page is "light" or "dark". */
export function shade() {
  return state.shade;
}

const tokens = new Map();
addEventListener("resize", () => tokens.clear()); // wide windows have a larger type

/** Return a value of the design, as style.css names it; asking the browser each time would make it compute all styles. */
export function token(name) {
  const key = `${shade()} ${name}`;
  if (!tokens.has(key)) tokens.set(key, getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim());
  return tokens.get(key);
}
