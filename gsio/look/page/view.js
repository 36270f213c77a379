// What the page shows, in one object. Every change goes through `set`, and the next animation frame draws the newest state.

import { state } from "./dom.js";

const REST = 120; // ms without a new frame number, after which the slider rests

export const view = {
  active: 0, // number of the output that the slider belongs to
  frame: 0, // of the active output
  field: "v",
  member: 0, // or "all"
  limits: "auto", // or "frame", or [low, high]
  map: "",
  zoom: { factor: 1, x: 0.5, y: 0.5 }, // 1 shows the whole picture; x and y are the centre, from 0 to 1
  follow: false,
  playing: false,
  speed: 15, // frames a second
  loop: false,
  mode: "move", // or "profile"
  point: null, // {row, col, member}
  line: null, // {from: [row, col], to: [row, col], member}
  moving: false, // the frame number changed a moment ago
  zooming: false, // the zoom did
};

const listeners = new Set();
let changed = new Set(); // names; a drawing is due while there are some
const rests = {};

/** Call `listener(set of the names that changed)` in the animation frame after a change. */
export function onChange(listener) {
  listeners.add(listener);
}

function draw() {
  const names = changed;
  changed = new Set();
  for (const listener of listeners) listener(names);
  state.drawn = changed.size === 0;
}

/** Draw again in the next animation frame; until then the page says that it does not show the newest state. */
export function refresh(...names) {
  if (!changed.size) requestAnimationFrame(draw);
  for (const name of names) changed.add(name);
  state.drawn = "false";
}

/** Set a flag of the view until nothing has moved for a moment. */
function begin(flag) {
  view[flag] = true;
  clearTimeout(rests[flag]);
  rests[flag] = setTimeout(() => {
    view[flag] = false;
    refresh(flag);
  }, REST);
}

export function set(changes, { moves = true } = {}) {
  if ("frame" in changes && changes.frame !== view.frame && moves) begin("moving");
  if ("zoom" in changes) begin("zooming");
  Object.assign(view, changes);
  refresh(...Object.keys(changes));
}
