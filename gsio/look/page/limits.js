// The limits of the contrast: a histogram of the frame with two marks, and two numbers.

import { gradient } from "./colours.js";
import { $, shade, token } from "./dom.js";
import { set, view } from "./view.js";

const BINS = 96;
const SAMPLES = 60_000;
const STRIP = 9; // CSS pixels of the strip of colours under the histogram
const NEAR = 0.5; // of the width: a drag takes the nearer mark

export class LimitsControl {
  range = [0, 1]; // of the histogram
  counts = new Float64Array(BINS);
  counted = 0; // how often the values were counted
  held = null; // 0 or 1: the mark that is dragged

  constructor() {
    this.canvas = $("#histogram");
    this.inputs = [$("#low"), $("#high")];
    for (const input of document.querySelectorAll("[name=limits]")) {
      input.addEventListener("change", () => set({ limits: input.value === "fixed" ? [...this.limits] : input.value }));
    }
    this.inputs.forEach((input, end) => input.addEventListener("change", () => this.#typed(input, end)));
    this.canvas.addEventListener("pointerdown", (event) => this.#hold(event));
    this.canvas.addEventListener("pointermove", (event) => this.#drag(event));
    for (const name of ["pointerup", "pointercancel"]) this.canvas.addEventListener(name, () => (this.held = null));
    new ResizeObserver(() => this.#draw()).observe(this.canvas);
  }

  #typed(input, end) {
    const value = Number(input.value.replace("−", "-"));
    const limits = [...this.limits];
    limits[end] = value;
    if (input.value.trim() && Number.isFinite(value) && limits[0] < limits[1]) set({ limits });
    else this.show(this.pane); // the text was no limit: the old one comes back
  }

  #valueAt(event) {
    const box = this.canvas.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return this.range[0] + share * (this.range[1] - this.range[0]);
  }

  #hold(event) {
    const value = this.#valueAt(event);
    const [low, high] = this.limits;
    this.held = value < low + NEAR * (high - low) ? 0 : 1;
    this.canvas.setPointerCapture(event.pointerId);
    this.#drag(event);
  }

  #drag(event) {
    if (this.held === null) return;
    const limits = [...this.limits];
    limits[this.held] = Number(this.#valueAt(event).toPrecision(4));
    if (limits[0] < limits[1]) set({ limits });
  }

  /** Show the limits of a pane. */
  show(pane) {
    this.pane = pane;
    this.limits = pane.limits;
    if (!pane.shown && this.counted) {
      this.counted = 0;
      this.counts.fill(0);
    }
    // A preview of another member of a sweep can widen the range of all frames.
    const widened = pane.output.states && view.limits === "auto" && String(this.range) !== String(this.limits);
    if (widened && pane.shown?.patch) this.count(pane);
    const mode = Array.isArray(view.limits) ? "fixed" : view.limits;
    $(`[name=limits][value=${mode}]`).checked = true;
    const unit = 10 ** Math.floor(Math.log10(this.limits[1] - this.limits[0]) - 6); // what is smaller is no difference here
    this.inputs.forEach((input, end) => {
      const text = String(Number((Math.round(this.limits[end] / unit) * unit).toPrecision(10)));
      if (document.activeElement !== input && input.value !== text) input.value = text;
    });
    this.#draw();
  }

  /** Count the values of an exact frame. */
  count({ output, shown, limits }) {
    const { patch, members } = shown;
    const cells = patch.rows * patch.cols * (patch.members > 1 && members.length === 1 ? 1 : members.length);
    const first = patch.offset + (patch.members > 1 && members.length === 1 ? members[0] * patch.rows * patch.cols : 0);
    const all = output.limits("auto", shown.field, 0);
    const fixed = Array.isArray(view.limits) ? limits : all;
    this.range = [Math.min(all[0], fixed[0]), Math.max(all[1], fixed[1])];
    const [low, high] = this.range;
    const factor = BINS / (high - low);
    this.counts.fill(0);
    const step = Math.max(1, Math.floor(cells / SAMPLES)) | 1; // odd, so that the sample is not one column
    for (let at = 0; at < cells; at += step) {
      const bin = Math.floor((patch.values.at(first + at) - low) * factor);
      if (bin >= 0 && bin <= BINS) this.counts[Math.min(bin, BINS - 1)]++;
    }
    this.counted++;
    this.#draw();
  }

  #draw() {
    const { canvas, range, counts, limits } = this;
    const key = [range, limits, this.counted, view.map, canvas.clientWidth, shade()].join(" ");
    if (key === this.drawn) return;
    this.drawn = key;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !limits) return;
    if (canvas.width !== Math.round(width * ratio)) [canvas.width, canvas.height] = [width * ratio, height * ratio];
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const floor = height - STRIP - 3;
    const most = Math.log1p(Math.max(1, ...counts));
    const place = (value) => ((value - range[0]) / (range[1] - range[0])) * width;
    const [low, high] = limits.map((value) => Math.min(width - 1.5, Math.max(1.5, place(value))));
    const [plain, strong] = [token("line"), token("line-strong")];
    counts.forEach((count, bin) => {
      const size = (Math.log1p(count) / most) * (floor - 6); // logarithms: rare values are seen too
      const x = (bin / BINS) * width;
      context.fillStyle = x + width / BINS < low || x > high ? plain : strong;
      if (count) context.fillRect(x, floor - Math.max(1, size), width / BINS - 0.75, Math.max(1, size));
    });
    this.#strip(context, low, high, floor + 3, width);
    context.fillStyle = token("accent");
    for (const x of [low, high]) {
      context.fillRect(x - 1, 4, 2, height - 4);
      context.beginPath();
      context.arc(x, 4, 4, 0, 7);
      context.fill();
    }
  }

  #strip(context, low, high, top, width) {
    const colours = gradient(view.map).match(/rgb\([^)]*\)/g);
    context.fillStyle = colours[0];
    context.fillRect(0, top, low, STRIP);
    context.fillStyle = colours.at(-1);
    context.fillRect(high, top, width - high, STRIP);
    const fill = context.createLinearGradient(low, 0, Math.max(low + 1, high), 0);
    colours.forEach((colour, i) => fill.addColorStop(i / (colours.length - 1), colour));
    context.fillStyle = fill;
    context.fillRect(low, top, high - low, STRIP);
  }
}
