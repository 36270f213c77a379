// The page: one pane for each output, one slider, one panel, and what connects them.

import { readAddress, writeAddress } from "./address.js";
import { Axes } from "./axes.js";
import { defaultMap, loadMaps, mapNames } from "./colours.js";
import { $, say, state } from "./dom.js";
import { Events } from "./events.js";
import { brief } from "./format.js";
import { listenToKeys } from "./keys.js";
import { getJson } from "./net.js";
import { Output } from "./output.js";
import { Pane } from "./pane.js";
import { CALM, Panel } from "./panel.js";
import { Player } from "./player.js";
import { startTheme } from "./theme.js";
import { Exact } from "./values.js";
import { onChange, refresh, set, view } from "./view.js";

const AGAIN = 2000; // ms until the next try to reach the server at the start
const PACE = 900; // ms between two changes by events: a page beside a run is to leave the processors to the run
const BY_ITSELF = new Set(["output", "loaded", "previews", "point"]); // what changes without a person
const WIDE = 1000; // CSS pixels from which on the side panel is open at the start
const [SIDE, HEAD] = [82, 52]; // CSS pixels beside and above a picture
const LARGER = 1.25; // times
const TILES = 320 * 2 ** 20; // bytes of previews of all members, above which tiles are drawn from exact values only

const panes = [];
const exact = new Exact();
let axes;
let panel;
let player;

const active = () => panes[view.active] ?? panes[0];

/** Return the frame of a pane: the slider's own, or that of the same model time in another output. */
function frameOf(pane) {
  if (pane === active()) return view.frame;
  return pane.output.frames ? pane.output.frameAt(active().output.timeOf(view.frame)) : 0;
}

function fetchPreviews(pane) {
  const { output } = pane;
  if (!output.framesHere || output.gone) return;
  let members = output.membersOf(view.member);
  const { rows, cols } = output.proxy;
  if (members.length * rows * cols * output.frames > TILES && members.length > 1) members = [];
  output.proxies.fetchAround(output.fieldOf(view.field), members, pane.frame, {
    waits: pane.loader.pending !== null, follows: pane.follows,
  });
}

/** Put several outputs side by side, or above one another where their pictures become much larger. */
function arrange() {
  const place = $("#panes");
  const scale = (across) => {
    const [width, height] = [place.clientWidth / across, place.clientHeight / Math.ceil(panes.length / across)];
    const fit = ({ output: { rows = 1, cols = 1 } }) => Math.min((width - SIDE) / cols, (height - HEAD) / rows);
    return Math.min(...panes.map(fit));
  };
  let across = panes.length;
  for (let fewer = across - 1; fewer > 0; fewer--) if (scale(fewer) > LARGER * scale(across)) across = fewer;
  place.style.setProperty("--across", across);
}

/** Let the slider stand at a frame that exists: at the newest one if the page follows. */
function settle() {
  const { last } = active().output;
  view.frame = view.follow ? last : Math.min(view.frame, last);
}

function draw(changed) {
  settle();
  for (const pane of panes) {
    pane.draw(frameOf(pane));
    fetchPreviews(pane);
  }
  player.show();
  axes.show(active().output);
  panel.show(active(), active().output.live && [...changed].every((name) => BY_ITSELF.has(name)));
  const { scale } = active().picture;
  say($("#zoom"), scale ? `${brief(100 * scale, 3)} %` : "");
  $("#profile").setAttribute("aria-pressed", view.mode === "profile");
  writeAddress();
  const { shown } = active();
  Object.assign(state, {
    frame: shown?.frame ?? "", kind: shown?.kind ?? "none", wanted: view.frame, playing: view.playing,
    follow: view.follow, moving: view.moving, zooming: view.zooming, output: active().output.state,
    previews: active().output.proxies.groups.size, points: panel.point.exact.size,
  });
  if (changed.has("active")) document.title = `${active().output.name} – gsio`;
}

/** Read the missing series, beside a run only now and then. */
async function readSeries(output) {
  const now = performance.now();
  if (output.live && now < output.read + CALM) return;
  output.read = now;
  await output.readSeries().catch(() => null); // the page says when the server is lost, and the next event asks again
}

/** Take the newest description of an output; while its state stays, the page changes only about once a second. */
function hear(described) {
  const pane = panes[described.number];
  if (!pane) return;
  clearTimeout(pane.due);
  const early = pane.heard + PACE - performance.now();
  if (early > 0 && described.state === pane.output.state && described.group === pane.output.group) {
    pane.due = setTimeout(() => hear(described), early);
    return;
  }
  pane.heard = performance.now();
  const { rows, cols } = pane.output;
  if (pane.output.update(described)) pane.clear();
  if (rows !== pane.output.rows || cols !== pane.output.cols) arrange();
  readSeries(pane.output).then(() => {
    settle();
    const before = pane.loader.busy;
    if (pane.follows) pane.ask(frameOf(pane));
    if (before || !pane.loader.busy) refresh("output"); // else the answer draws
  });
}

function remove(number) {
  clearTimeout(panes[number]?.due);
  panes[number]?.output.remove();
  refresh("output");
}

function onConnection(open) {
  state.connection = open ? "open" : "lost";
  $("#connection").hidden = open;
}

function zoom(times) {
  const { picture } = active();
  picture.zoom = view.zoom; // two keys may come between two drawings
  set({ zoom: picture.zoomed(times) });
}

/** Move the zoomed picture, so that a quarter of the window comes into view at the right (x = 1) or below (y = 1). */
function move(x, y) {
  const { picture } = active();
  picture.zoom = view.zoom;
  set({ zoom: picture.moved((-x * picture.width) / 4, (-y * picture.height) / 4) });
}

const fit = () => set({ zoom: { factor: 1, x: 0.5, y: 0.5 } });

function showPanel(open) {
  state.panel = open ? "open" : "closed";
  $("#panel-open").setAttribute("aria-expanded", open);
  if (panel && active().shown?.patch) onExact(active());
  refresh("size");
}

function listen() {
  const togglePanel = () => showPanel(state.panel !== "open");
  const save = () => active().save();
  $("#panel-open").addEventListener("click", togglePanel);
  $("#zoom-in").addEventListener("click", () => zoom(1.25));
  $("#zoom-out").addEventListener("click", () => zoom(0.8));
  $("#fit").addEventListener("click", fit);
  $("#save").addEventListener("click", save);
  $("#profile").addEventListener("click", () => set({ mode: view.mode === "profile" ? "move" : "profile" }));
  window.addEventListener("hashchange", () => restore());
  listenToKeys({ player, zoom, move, fit, save, togglePanel });
}

/** Show what the address names, where it exists. */
function restore() {
  const named = readAddress();
  const map = mapNames().includes(view.map) ? view.map : defaultMap;
  const number = view.active < panes.length ? view.active : 0;
  const { output } = panes[number];
  const first = (output.live || (output.state === "waiting" && !output.states)) && !("frame" in named) && !("follow" in named);
  set({ map, active: number, ...(first ? { follow: true } : {}) }, { moves: false });
}

function onExact(pane) {
  if (pane !== active() || state.panel === "closed") return;
  panel.limits.count(pane);
  panel.point.add(pane);
}

async function start() {
  showPanel(innerWidth >= WIDE);
  startTheme();
  await loadMaps();
  for (const described of await getJson("outputs")) {
    const output = new Output(described, () => output.live && view.follow || refresh("previews")); // events draw
    panes.push(new Pane(output, exact, onExact));
  }
  await Promise.all(panes.map(({ output }) => readSeries(output)));
  $("#identity").append(panes.length === 1 ? panes[0].head : `${panes.length} outputs, linked by model time`);
  $("#panes").dataset.many = panes.length > 1;
  $("#panes").append(...panes.map((pane) => pane.element));
  new ResizeObserver(arrange).observe($("#panes"));
  axes = new Axes();
  panel = new Panel();
  player = new Player(active);
  restore();
  listen();
  onChange(draw);
  new Events({ onOutput: hear, onGone: remove, onConnection });
  state.ready = "true";
}

async function begin() {
  try {
    await start();
  } catch (error) {
    if (error.status === undefined) throw error;
    const lost = error.status === 0;
    say($("#connection"), error.message);
    onConnection(false);
    if (lost && !panes.length) setTimeout(begin, AGAIN);
  }
}

/** For tests and curious people: what is shown, to read only. */
window.gsio = Object.freeze({
  state: () => ({
    active: view.active, frame: view.frame, field: view.field, member: view.member, limits: view.limits, map: view.map,
    zoom: view.zoom, follow: view.follow, playing: view.playing, point: view.point, connection: state.connection,
    outputs: panes.map(({ output, shown, limits }) => ({
      number: output.number, name: output.name, state: output.gone ? "gone" : output.state, frames: output.frames,
      frame: shown?.frame ?? null, kind: shown?.kind ?? "none", limits,
      previews: output.proxies.groups.size, series: output.series.time.length,
    })),
  }),
  value: (row, col, { output = view.active, member } = {}) => panes[output]?.valueAt(row, col, member) ?? null,
  marks: () => panes.map(({ marks }) => marks),
  curves: () => ({ point: [...panel.point.exact], line: panel.line.plot.data }),
});

begin();
