// The value at a point over time, and the values along a line.

import { $ } from "./dom.js";
import { legend, Plot } from "./plots.js";
import { refresh, set, view } from "./view.js";

/** The value at the chosen point: from the proxies at once, and exactly when the server has read the frames. */
export class PointCurve {
  exact = new Map(); // frame → value
  key = "";

  constructor() {
    this.plot = new Plot($("#point"), [
      { token: "line-strong", width: 1, points: false },
      { token: "series-1" },
    ], { onPick: (frame) => set({ frame, follow: false }) });
    legend($("#point-legend"), [["preview", "line-strong"], ["exact", "series-1"]]);
    for (const id of ["point-row", "point-col"]) $(`#${id}`).addEventListener("change", () => this.#typed());
    document.addEventListener("visibilitychange", () => document.hidden && this.#pause());
  }

  #typed() {
    const [row, col] = ["point-row", "point-col"].map((id) => Number($(`#${id}`).value));
    if (Number.isInteger(row) && Number.isInteger(col) && row >= 0 && col >= 0) {
      set({ point: { row, col, member: view.point?.member ?? (view.member === "all" ? 0 : view.member) } });
    }
  }

  close() {
    this.stream?.close();
    this.stream = null;
  }

  /** Give the connection back while nobody looks; browsers have only six for all tabs of a server. */
  #pause() {
    if (!this.stream || this.stream.readyState === EventSource.CLOSED) return;
    this.close();
    this.key = ""; // the next drawing begins again
  }

  #open(output, field, { member, row, col }) {
    this.close();
    this.exact.clear();
    const stream = new EventSource(`./outputs/${output.number}/point/${field}/${member}/${row}/${col}`);
    stream.addEventListener("message", (event) => {
      const { frames, values } = JSON.parse(event.data);
      frames.forEach((frame, i) => this.exact.set(frame, values[i]));
      refresh("point");
    });
    for (const name of ["done", "error"]) stream.addEventListener(name, () => stream.close()); // it never opens itself again
    this.stream = stream;
  }

  /** Take the value of an exact frame that came anyway. */
  add(pane) {
    const { point } = view;
    if (!point || this.owner !== pane.output) return;
    const found = pane.valueAt(point.row, point.col, point.member);
    if (found?.exact && found.row === point.row && found.col === point.col) this.exact.set(pane.shown.frame, found.value);
  }

  show(pane) {
    const { output } = pane;
    const { point } = view;
    const inside =
      point && output.framesHere && point.row < output.rows && point.col < output.cols && point.member < output.members;
    $("#point").hidden = !inside;
    $("#point-hint").hidden = Boolean(inside);
    if (!inside) {
      this.key = "";
      return this.close();
    }
    const field = output.fieldOf(view.field);
    const key = [output.number, output.group, output.live, output.stateOfMember, field, point.row, point.col, point.member].join(" ");
    if (key !== this.key) {
      [this.key, this.owner] = [key, output];
      for (const [id, value] of [["point-row", point.row], ["point-col", point.col]]) $(`#${id}`).value = value;
      this.#open(output, field, point);
    }
    this.#draw(output, field, point);
    this.plot.markAt(pane.shown?.frame ?? pane.frame);
    return undefined;
  }

  #draw(output, field, { member, row, col }) {
    const drawn = `${this.key} ${output.proxies.groups.size} ${this.exact.size}`;
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    const [frames, values] = output.proxies.series(field, member, row, col);
    const about = new Map(frames.map((frame, i) => [frame, values[i]]));
    const all = [...new Set([...frames, ...this.exact.keys()])].sort((a, b) => a - b);
    const finite = (value) => (Number.isFinite(value) ? value : null);
    this.plot.show([all, all.map((frame) => finite(about.get(frame))), all.map((frame) => finite(this.exact.get(frame)))]);
  }
}

const ENDS = ["from-row", "from-col", "to-row", "to-col"];

/** The exact values along the chosen line, one for each cell that the line crosses. */
export class LineCurve {
  constructor() {
    this.plot = new Plot($("#line"), [{ token: "series-1" }], { along: "distance in cells" });
    for (const id of ENDS) $(`#${id}`).addEventListener("change", () => this.#typed());
  }

  #typed() {
    const texts = ENDS.map((id) => $(`#${id}`).value);
    const [a, b, c, d] = texts.map(Number);
    if (texts.some((text) => text === "") || ![a, b, c, d].every((n) => Number.isInteger(n) && n >= 0)) return;
    set({ line: { from: [a, b], to: [c, d], member: view.line?.member ?? (view.member === "all" ? 0 : view.member) } });
  }

  show(pane) {
    const { line } = view;
    const { shown, output } = pane;
    const inside = line && [line.from, line.to].every(([row, col]) => row < output.rows && col < output.cols);
    $("#line").hidden = !inside;
    $("#line-hint").hidden = Boolean(inside);
    if (line !== this.seen && line) $("#line-group").open = true;
    this.seen = line;
    if (!inside || shown?.kind !== "exact") return;
    const { frame, field, patch } = shown;
    const key = [output.number, output.group, frame, field, line.from, line.to, line.member, patch.step].join(" ");
    if (key === this.key) return;
    this.key = key;
    [...line.from, ...line.to].forEach((value, i) => ($(`#${ENDS[i]}`).value = value));
    this.plot.show(this.#sample(pane, line));
    this.plot.markAt(null);
  }

  #sample(pane, { from, to, member }) {
    const [down, across] = [to[0] - from[0], to[1] - from[1]];
    const steps = Math.max(1, Math.abs(down), Math.abs(across));
    const length = Math.hypot(down, across);
    const places = Array.from({ length: steps + 1 }, (_, i) => (i / steps) * length);
    const values = places.map((_, i) => {
      const at = [from[0] + (down * i) / steps, from[1] + (across * i) / steps].map(Math.round);
      const found = pane.valueAt(...at, member);
      return found && Number.isFinite(found.value) ? found.value : null;
    });
    return [places, values];
  }
}
