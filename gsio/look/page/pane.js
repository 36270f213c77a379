// One output on the page: its header, its picture with the colour bar, and what the pointer does there.

import { colourOf, gradient, paint, paintProxy } from "./colours.js";
import { el, say } from "./dom.js";
import { brief, count, duration, shortest, ticks } from "./format.js";
import { Loader, regionOf } from "./loader.js";
import { Picture, Sheet } from "./picture.js";
import { refresh, set, view } from "./view.js";
import { Pointer } from "./pointer.js";

const STATES = {
  waiting: "waiting", running: "running", complete: "complete", stopped: "stopped",
  failed: "failed", killed: "killed", gone: "deleted",
};

const BESIDE = 12; // CSS pixels between the picture and its colour bar

const LACKS = {
  pending: "This member is pending: it is not in the result yet.",
  failed: "This member failed, and has no frames. The next gsio sweep tries this member again.",
  diverged: "This member diverged before its first frame.",
};

const sameMembers = (content, members) => String(content?.members) === String(members);

export class Pane {
  marks = { exact: [], proxy: [] }; // ms: from the request to the picture, and of painting a proxy
  limits = [0, 1];
  shown = null; // {frame, kind, field, member}: what the canvas shows
  heard = 0; // when the page took the newest description of the output
  saves = false; // a PNG, when the exact frame is here

  constructor(output, exact, onExact) {
    this.output = output;
    this.onExact = onExact;
    this.loader = new Loader(output, exact, () => refresh("loaded"));
    this.sheets = { exact: new Sheet(), proxy: Object.assign(new Sheet(), { soft: true }) };
    this.#build();
    this.picture = new Picture(this.stage, this.canvas);
    this.pointer = new Pointer(this);
    new ResizeObserver(() => {
      this.picture.measure();
      refresh("size");
    }).observe(this.stage);
  }

  #build() {
    this.name = el("h2", { className: "name" });
    this.badge = el("span", { className: "badge" });
    this.where = el("span", { className: "where" });
    this.rates = el("span", { className: "rates" });
    this.head = el("div", { className: "head" }, this.name, this.badge, this.where, this.rates);
    this.canvas = el("canvas", { className: "canvas" });
    this.readout = el("output", { className: "readout", hidden: true });
    this.veil = el("p", { className: "veil", hidden: true });
    this.message = el("p", { className: "message", role: "status", hidden: true });
    this.stage = el("div", { className: "stage", tabIndex: 0, role: "img" }, this.canvas, this.veil, this.readout);
    this.bar = el("div", { className: "bar" });
    this.ticks = el("div", { className: "ticks" });
    this.scale = el("div", { className: "scale", "aria-hidden": "true" }, this.bar, this.ticks);
    const side = el("div", { className: "side" }, this.scale);
    const body = el("div", { className: "body" }, this.stage, side);
    this.element = el("section", { className: "pane" }, this.head, this.message, body);
    this.element.addEventListener("focusin", () => this.activate());
    this.element.addEventListener("pointerdown", () => this.activate());
  }

  /** Make this output the one that the slider and the panel belong to. */
  activate() {
    if (view.active === this.output.number) return;
    set({ active: this.output.number, frame: this.frame ?? 0 }, { moves: false });
  }

  clear() {
    this.loader.clear();
    for (const sheet of Object.values(this.sheets)) sheet.key = "";
  }

  /** Whether the pane shows the newest frame of a running output. */
  get follows() {
    return this.output.live && view.follow;
  }

  /** Ask for a frame of the view, and return what can be drawn now. */
  ask(frame) {
    const { output, picture } = this;
    this.frame = Math.min(frame, Math.max(0, output.framesHere - 1));
    if (!output.rows || (output.states && !output.framesHere)) return null;
    const members = output.membersOf(view.member);
    picture.arrange({ rows: output.rows, cols: output.cols, tiles: members.length });
    picture.zoom = view.zoom;
    const field = output.fieldOf(view.field);
    const region = output.exact === "window" ? regionOf(picture, output.rows, output.cols) : null;
    const moving = view.moving || view.playing || (region && view.zooming);
    const wish = { frame: this.frame, field, members, moving, live: this.follows, seen: picture.visible, region };
    const content = this.loader.update(wish);
    return this.loader.busy || sameMembers(content, members) ? content : null;
  }

  /** Draw the frame of the view whose number is `frame`. */
  draw(frame) {
    const content = this.ask(frame);
    if (!content && !sameMembers(this.shown, this.output.membersOf(view.member))) this.shown = null; // nobody shall take an old picture for that of these members
    if (this.output.rows) this.#drawPicture(content);
    this.#drawHead();
    this.#drawMessage();
  }

  #drawPicture(content) {
    if (content) this.#paint(content);
    const { tiles } = this.picture.shape;
    const names = tiles > 1 ? this.output.membersOf(view.member).map(String) : null;
    this.picture.draw({ names, point: this.cellOf(view.point), line: this.#lineOf(view.line) });
    this.#drawScale();
    this.pointer.again();
    this.#measure(content);
  }

  /** Note how long a frame took from the request to the picture. */
  #measure(content) {
    const { arrived } = this.loader;
    if (content?.kind !== "exact" || arrived?.frame !== content.frame || arrived.field !== content.field) return;
    this.marks.exact = [...this.marks.exact.slice(-999), performance.now() - arrived.began];
    this.loader.arrived = null;
  }

  #paint(content) {
    const { output, picture } = this;
    const { kind, frame, field, members, patch, proxies } = content;
    this.limits = output.limits(view.limits, field, frame);
    const key = [output.group, frame, field, members, this.limits, view.map].join(" ");
    picture.layers = [];
    const large = output.exact === "window";
    const old = this.loader.patch;
    const part = patch ?? (large && old?.frame === frame && old.field === field && old.member === members[0] ? old : null);
    if (proxies && (kind === "proxy" || large)) picture.layers.push(this.#proxyLayer(proxies, key));
    if (part) picture.layers.push(this.#exactLayer(part, members, `${key} ${part.top} ${part.left} ${part.step}`));
    const { shown: before } = this;
    const news = before?.frame !== frame || before.kind !== kind || before.field !== field || !sameMembers(before, members);
    this.shown = { frame, kind, field, members, patch, proxies };
    if (news && kind === "exact") this.onExact(this);
    if (this.saves) this.save();
  }

  #proxyLayer(proxies, key) {
    const { rows, cols, proxy } = this.output;
    const sheet = this.sheets.proxy;
    if (sheet.key !== key) {
      const began = performance.now();
      sheet.resize(proxy.cols, proxy.rows, proxies.length);
      proxies.forEach((one, tile) => {
        paintProxy(one, this.limits, view.map, sheet.pixels);
        sheet.put(tile);
      });
      sheet.key = key;
      this.marks.proxy = [...this.marks.proxy.slice(-999), performance.now() - began];
    }
    const { factor } = this.output.proxies;
    return { sheet, top: 0, left: 0, rows, cols, from: [cols / factor, rows / factor] }; // the last cells may reach over the edge
  }

  #exactLayer(patch, members, key) {
    const sheet = this.sheets.exact;
    if (sheet.key !== key) {
      sheet.resize(patch.cols, patch.rows, members.length);
      members.forEach((member, tile) => {
        const offset = patch.offset + (patch.members > 1 ? member : 0) * patch.rows * patch.cols;
        paint(patch.values, offset, this.limits, view.map, sheet.pixels);
        sheet.put(tile);
      });
      sheet.key = key;
    }
    const { top, left, step } = patch;
    return { sheet, top, left, rows: patch.rows * step, cols: patch.cols * step, from: [patch.cols, patch.rows] };
  }

  #drawHead() {
    const { output, shown } = this;
    const state = output.gone ? "gone" : output.state;
    say(this.name, output.name);
    this.badge.dataset.state = state;
    say(this.badge, STATES[state] ?? state);
    this.element.setAttribute("aria-label", `${output.name}, ${STATES[state] ?? state}`);
    this.element.dataset.active = view.active === output.number;
    this.element.dataset.kind = shown?.kind ?? "none";
    this.veil.hidden = Boolean(shown);
    const loads = output.framesHere ? "The page loads the frame." : "The page waits for the first frame.";
    say(this.veil, (!output.framesHere && LACKS[output.stateOfMember]) || loads);
    if (output.states) say(this.rates, `${count(output.complete)} of ${count(output.members)} members complete`);
    if (!output.framesHere) {
      this.stage.setAttribute("aria-label", this.veil.textContent);
      return say(this.where, "");
    }
    const frame = shown?.frame ?? this.frame;
    const more = output.live && output.frames_total > output.frames; // the total of some outputs is not known
    const total = more ? `${count(output.frames)} (${count(output.frames_total)} in all)` : count(output.framesHere);
    say(this.where, `frame ${count(frame)} of ${total}   t = ${brief(output.timeOf(frame), 6)}`);
    if (!output.states) say(this.rates, output.live ? this.#ratesOf(output.progress ?? {}) : "");
    const field = shown?.field ?? output.fieldOf(view.field);
    const kind = shown?.kind === "exact" ? "exact values" : "preview";
    this.stage.setAttribute("aria-label", `Frame ${frame} of ${output.name}, field ${field}, ${kind}`);
    return undefined;
  }

  #ratesOf({ steps_per_second: steps, gcells_per_second: cells, seconds_left: left }) {
    const parts = [];
    if (steps) parts.push(`${brief(steps, 3)} steps/s`);
    if (cells) parts.push(`${brief(cells, 3)} Gcell/s`);
    if (left > 0) parts.push(`${duration(left)} left`);
    return parts.join("   ");
  }

  #drawMessage() {
    const { trouble } = this.loader;
    const { framesHere, stateOfMember } = this.output;
    let text = framesHere && stateOfMember === "diverged" ? `This member diverged after ${count(framesHere)} frames.` : this.output.note;
    if (trouble && trouble.status !== 0 && !this.output.gone && framesHere) {
      text = `Frame ${trouble.frame}: ${trouble.text}`;
      if (this.shown && this.shown.frame !== this.frame) text += ` The picture still shows frame ${this.shown.frame}.`;
    }
    this.message.hidden = !text;
    say(this.message, text);
  }

  /** Draw the colour bar beside the picture and as high, with a few round numbers. */
  #drawScale() {
    const [low, high] = this.limits;
    const { top, bottom, right } = this.picture.edges;
    const key = [low, high, view.map, top, bottom, right, this.picture.width].join(" ");
    if (this.scaleKey === key) return;
    this.scaleKey = key;
    this.scale.style.top = `${top}px`;
    this.scale.style.height = `${bottom - top}px`;
    this.scale.style.left = `${right - this.picture.width + BESIDE}px`;
    this.bar.style.backgroundImage = gradient(view.map, "top");
    const wanted = Math.max(2, Math.min(6, Math.floor((bottom - top) / 100)));
    this.ticks.replaceChildren(...ticks(low, high, wanted).map((value) => {
      const tick = el("span", {}, brief(value));
      tick.style.bottom = `${(100 * (value - low)) / (high - low)}%`;
      return tick;
    }));
  }

  cellOf(point) {
    if (!point || point.row >= this.output.rows || point.col >= this.output.cols) return null;
    const tile = this.output.membersOf(view.member).indexOf(point.member);
    return tile < 0 ? null : { ...point, tile };
  }

  #lineOf(line) {
    if (!line) return null;
    const tile = this.output.membersOf(view.member).indexOf(line.member);
    return tile < 0 ? null : { ...line, tile };
  }

  /** Return {row, col, value, exact} of the cell at (row, col) as the picture shows it, or null. */
  valueAt(row, col, member = this.shown?.members[0]) {
    const { shown, output } = this;
    if (!shown) return null;
    const cell = shown.patch?.cell(member, row, col);
    if (cell) return { row: cell[0], col: cell[1], value: cell[2], exact: true };
    const found = shown.proxies?.[shown.members.indexOf(member)];
    if (!found) return null;
    const { factor } = output.proxies;
    const q = found.bytes[Math.floor(row / factor) * output.proxy.cols + Math.floor(col / factor)];
    return { row, col, value: found.low + (q / 255) * (found.high - found.low), exact: false };
  }

  /** Show the value under the pointer, or nothing for null. */
  hover(cell) {
    const member = cell && this.output.membersOf(view.member)[cell.tile];
    const found = cell && this.valueAt(cell.row, cell.col, member);
    this.readout.hidden = !found;
    if (!found) return;
    const value = found.exact ? shortest(found.value, this.output.dtype) : `≈ ${brief(found.value, 3)}`;
    const which = this.output.members > 1 ? `member ${member}, ` : "";
    this.readout.replaceChildren(
      el("span", { className: "cell" }, `${which}row ${found.row}, col ${found.col}`),
      el("i", { className: "swatch" }), el("b", {}, value),
    );
    this.readout.children[1].style.backgroundColor = colourOf(found.value, this.limits, view.map);
  }

  /** Save the exact frame, at once or as soon as it is here, at full size as a PNG named after output, field and frame. */
  save() {
    const { shown, output } = this;
    this.saves = shown?.kind !== "exact";
    if (this.saves) return;
    const stem = output.name.replace(/\.(h5|hdf5|zarr)$/, "");
    const member = shown.members.length === 1 && output.members > 1 ? `-m${shown.members[0]}` : "";
    const part = shown.patch.whole ? "" : "-part"; // of a large grid: what is seen
    const frame = String(shown.frame).padStart(5, "0");
    this.sheets.exact.canvas.toBlob((blob) => {
      const download = `${stem}-${shown.field}${member}-${frame}${part}.png`;
      const link = el("a", { href: URL.createObjectURL(blob), download });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    });
  }
}
