// The side panel: what the picture shows and how, the curves, the run, and the facts of an output.

import { gradient, mapNames } from "./colours.js";
import { LineCurve, PointCurve } from "./curves.js";
import { $, el, say, state, token } from "./dom.js";
import { brief, word } from "./format.js";
import { LimitsControl } from "./limits.js";
import { legend, Plot } from "./plots.js";
import { refresh, set, view } from "./view.js";

const PARTS = ["compute", "link", "encode", "write", "wait"];
const KINDS = { f: "float", i: "int", u: "uint" };
export const CALM = 2500; // ms between two changes of the curves beside a run, which is to have the processors
const STRIP = 160; // moments in a lane
const TALL = 40; // pixels of a lane, which the style stretches

export class Panel {
  due = 0; // when a running output may change the panel again

  constructor() {
    for (const group of document.querySelectorAll(".group")) group.addEventListener("toggle", () => refresh("panel"));
    this.limits = new LimitsControl();
    this.point = new PointCurve();
    this.line = new LineCurve();
    this.stats = new Plot($("#stats"), [
      { token: "series-2", dash: [7, 4], points: false }, { token: "series-1", points: false },
      { token: "series-3", dash: [2, 3], points: false },
    ], { onPick: (frame) => set({ frame, follow: false }) });
    legend($("#stats-legend"), [["greatest", "series-2", "dashed"], ["mean", "series-1"], ["least", "series-3", "dotted"]]);
    $("#field").addEventListener("change", (event) => set({ field: event.target.value }));
    this.#listMaps();
  }

  #listMaps() {
    for (const name of mapNames()) {
      const input = el("input", { type: "radio", name: "map", value: name });
      input.addEventListener("change", () => set({ map: name }));
      const swatch = el("span", { className: "swatch" });
      swatch.style.backgroundImage = gradient(name);
      $("#map-list").append(el("label", {}, input, swatch, name));
    }
  }

  /** Show what belongs to the active pane, where it is seen; `calm`: the run changed it, which is shown now and then. */
  show(pane, calm) {
    const { output } = pane;
    const now = performance.now();
    clearTimeout(this.timer);
    if (state.panel === "closed") return;
    if (calm && now < this.due) {
      this.timer = setTimeout(refresh, CALM, "panel"); // for the last change
      return;
    }
    this.due = now + CALM;
    this.#showChoices(output);
    if (!output.rows) return;
    this.limits.show(pane);
    this.line.show(pane);
    this.#showRun(output);
    $("#stats-group").hidden = Boolean(output.states);
    if ($("#stats-group").open && !output.states) this.#showStats(pane);
    if ($("#point-group").open) this.point.show(pane);
    if ($("#facts-group").open) this.#showFacts(output);
  }

  #showChoices(output) {
    const { fields } = output;
    const select = $("#field");
    const key = fields.join(" ");
    if (select.dataset.key !== key) select.replaceChildren(...fields.map((value) => el("option", { value }, value)));
    select.dataset.key = key;
    select.value = output.fieldOf(view.field) ?? "";
    $("#field-row").hidden = fields.length < 2;
    if ($("#map-name").textContent === view.map) return;
    say($("#map-name"), view.map);
    $("#map-swatch").style.backgroundImage = gradient(view.map);
    for (const input of document.querySelectorAll("[name=map]")) input.checked = input.value === view.map;
  }

  #showStats(pane) {
    const { output } = pane;
    const field = output.fieldOf(view.field);
    const curve = (name) => (output.series.stats[`${field}_${name}`] ?? []).map((value) => reduce(value, name));
    const key = `${output.number} ${output.group} ${field} ${output.series.time.length}`;
    if (key !== this.statsKey) {
      this.statsKey = key;
      this.stats.show([output.series.time.map((_, frame) => frame), curve("max"), curve("mean"), curve("min")]);
    }
    this.stats.markAt(pane.shown?.frame ?? pane.frame);
  }

  #showRun(output) {
    const { occupied, bottleneck } = output.progress ?? {};
    $("#run-group").hidden = !output.live || !occupied;
    if ($("#run-group").hidden || !$("#run-group").open) return;
    const note = $("#bottleneck");
    if (note.dataset.of !== String(bottleneck)) {
      note.dataset.of = String(bottleneck);
      const sentence = bottleneck ? ["The bottleneck is ", el("b", {}, bottleneck), "."] : ["Each lane shows how busy a part was."];
      note.replaceChildren(...sentence);
    }
    const parts = PARTS.filter((part) => part in occupied);
    const lanes = $("#lanes");
    if (lanes.children.length !== parts.length) lanes.replaceChildren(...parts.map((part) => laneOf(part)));
    parts.forEach((part, i) => {
      const lane = lanes.children[i];
      lane.dataset.bottleneck = part === bottleneck;
      say(lane.lastChild, `${Math.round(100 * (occupied[part] ?? 0))} %`);
      drawLane(lane.children[1], output.history.map((moment) => moment[part] ?? 0), part === bottleneck);
    });
  }

  #showFacts(output) {
    const own = view.member === "all" && output.exact === "chunk" ? {} : output.values;
    const key = JSON.stringify([output.facts, output.damaged, output.group, own]);
    if (key === this.factsKey) return;
    this.factsKey = key;
    const { rows, cols, members, chunk } = output;
    const [kind, size] = [KINDS[chunk.dtype[1]], 8 * chunk.dtype.slice(2)];
    const facts = [
      ["grid", `${members > 1 && !output.states ? `${members} × ` : ""}${rows} × ${cols}`], ["values", output.dtype],
      ["stored as", `${kind}${size}${chunk.scale === null ? "" : ` × ${brief(chunk.scale)}`}`],
    ];
    const { dt = output.dt, steps_per_frame: steps = output.steps_per_frame, ...values } = own;
    if (dt) facts.push(["steps a frame", String(steps)], ["time step", String(dt)]);
    facts.unshift(...Object.entries(values).map(([name, value]) => [name, word(value)]));
    const given = output.facts.filter(([name]) => !facts.some(([other]) => other === name));
    if (output.damaged.length) given.push(["damaged frames", output.damaged.join(", ")]);
    const pairs = [...facts, ...given].flatMap(([name, text]) => [
      el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, readable(String(text))),
    ]);
    $("#facts").replaceChildren(...pairs);
  }
}

/** Return a moment as people write it; any other text stays. */
function readable(text) {
  return text.replace(/^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?\+00:00$/, "$1 $2 UTC");
}

/** Return one value for all members of a batch. */
function reduce(value, name) {
  if (!Array.isArray(value)) return value;
  if (name === "mean") return value.reduce((sum, one) => sum + one, 0) / value.length;
  return name === "max" ? Math.max(...value) : Math.min(...value);
}

function laneOf(part) {
  const strip = el("canvas", { width: STRIP, height: TALL, "aria-hidden": "true" });
  return el("div", { className: "lane" }, el("span", {}, part), strip, el("output"));
}

/** Draw a lane as bars, one for each moment, the newest at the right. */
function drawLane(canvas, shares, strong) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, STRIP, TALL);
  context.fillStyle = token(strong ? "series-2" : "series-1");
  shares.slice(-STRIP).reverse().forEach((share, age) => {
    const size = Math.min(1, share) * TALL;
    context.fillRect(STRIP - age - 1, TALL - size, 1, size);
  });
}
