// The fragment of the address names what is shown, so that a link can be shared.

import { state } from "./dom.js";
import { set, view } from "./view.js";

const PAUSE = 250; // ms between two changes of the address; browsers refuse more than a few a second

let known = ""; // the fragment as the page read or wrote it last
let due = 0;

const finite = (text) => text !== "" && Number.isFinite(Number(text));

function parseLimits(text) {
  if (text === "auto" || text === "frame") return text;
  const parts = text.split(":");
  if (parts.length !== 2 || !parts.every(finite)) return undefined;
  const [low, high] = parts.map(Number);
  return low < high ? [low, high] : undefined;
}

function parseZoom(text) {
  const parts = text.split(",");
  if (parts.length !== 3 || !parts.every(finite)) return undefined;
  const [factor, x, y] = parts.map(Number);
  return factor >= 1 && x >= 0 && x <= 1 && y >= 0 && y <= 1 ? { factor, x, y } : undefined;
}

function parsePoint(text) {
  const parts = text.split(",");
  if (parts.length < 2 || !parts.every((part) => /^\d+$/.test(part))) return undefined;
  const [row, col, member = 0] = parts.map(Number);
  return { row, col, member };
}

const whole = (text) => (/^\d+$/.test(text) ? Number(text) : undefined);
const flag = (text) => text === "1";

// key of the fragment → [name in the view, text → value, value → text or null where the key is left out]
const KEYS = {
  output: ["active", whole, (value) => value || null],
  frame: ["frame", whole, (value) => (view.follow ? null : String(value))], // follow names the newest
  field: ["field", (text) => (/^\w+$/.test(text) ? text : undefined), String],
  member: ["member", (text) => (text === "all" ? text : whole(text)), (value) => value || null],
  limits: ["limits", parseLimits, (value) => (Array.isArray(value) ? value.join(":") : value)],
  map: ["map", (text) => text, (value) => value || null],
  zoom: ["zoom", parseZoom, ({ factor, x, y }) => (factor > 1 ? [factor, x, y].map((n) => Number(n.toFixed(4))).join(",") : null)],
  point: ["point", parsePoint, (value) => value && [value.row, value.col, value.member].join(",")],
  follow: ["follow", flag, (value) => (value ? 1 : null)],
};

/** Read the fragment into the view. Whatever is malformed is left out. */
export function readAddress() {
  known = location.hash;
  const changes = {};
  for (const part of known.slice(1).split("&")) {
    const at = part.indexOf("=");
    const [name, parse] = Object.hasOwn(KEYS, part.slice(0, at)) ? KEYS[part.slice(0, at)] : [];
    if (!name) continue;
    let value;
    try {
      value = parse(decodeURIComponent(part.slice(at + 1)));
    } catch {
      continue; // a torn escape
    }
    if (value !== undefined) changes[name] = value;
  }
  set(changes, { moves: false });
  return changes;
}

function fragment() {
  const parts = [];
  for (const [key, [name, , format]] of Object.entries(KEYS)) {
    const text = format(view[name]);
    if (text !== null && text !== undefined) parts.push(`${key}=${encodeURI(text)}`);
  }
  return `#${parts.join("&")}`;
}

/** Write the view into the address soon, without a new entry in the history. */
export function writeAddress() {
  clearTimeout(due);
  due = setTimeout(() => {
    if (location.hash !== known) return; // a person has just changed it, and the page will hear of that
    const address = fragment();
    if (address !== known) history.replaceState(null, "", address);
    known = location.hash;
    state.address = known;
  }, PAUSE);
}
