// Curves beside the picture, drawn by uPlot.

import uPlot from "./uPlot.esm.js";
import { el, token } from "./dom.js";
import { brief } from "./format.js";

const HEIGHT = 160;
const made = new Set();

const font = () => `${token("small")} system-ui, sans-serif`;

function axis(extra) {
  const grid = { stroke: token("line"), width: 1 };
  return { stroke: token("ink-soft"), font: font(), grid, ticks: { ...grid, size: 4 }, gap: 4, ...extra };
}

/** A plot in `place` with one curve for each of `curves`: {token, dash, width, points}; points show where they are sparse. */
export class Plot {
  #plot = null;
  #data = null;
  #at = null;

  constructor(place, curves, { along = "frame", onPick = null } = {}) {
    Object.assign(this, { place, curves, along, onPick });
    this.mark = el("div", { className: "now", hidden: true });
    new ResizeObserver(() => this.#resize()).observe(place);
    made.add(this);
  }

  #options(width) {
    const series = this.curves.map(({ token: name, dash, width: thick = 1.5, points }) => ({
      stroke: token(name), dash, width: thick, spanGaps: true,
      points: { show: points, size: 4, fill: token(name), stroke: token(name) },
    }));
    const values = (_, splits) => splits.map((value) => brief(value));
    return {
      width, height: HEIGHT, legend: { show: false }, padding: [8, 8, 0, 0],
      scales: { x: { time: false, range: (_, low, high) => [low, Math.max(high, low + 1)] } },
      axes: [
        axis({ size: 22, values, space: 55, label: this.along, labelSize: 14, labelGap: 0, labelFont: font() }),
        axis({ size: 52, values, space: 30 }),
      ],
      cursor: { drag: { x: false, y: false }, y: false, points: { size: 6 } },
      series: [{}, ...series],
    };
  }

  #resize() {
    const width = this.place.clientWidth;
    if (!width || !this.#data) return;
    if (!this.#plot) this.#make(width);
    else if (this.#plot.width !== width) this.#plot.setSize({ width, height: HEIGHT });
    this.markAt(this.#at);
  }

  #make(width) {
    this.#plot = new uPlot(this.#options(width), this.#data, this.place);
    this.#plot.over.append(this.mark);
    this.#plot.over.addEventListener("click", () => {
      const { idx } = this.#plot.cursor;
      if (this.onPick && idx !== null && idx !== undefined) this.onPick(this.#data[0][idx]);
    });
  }

  /** Show columns: the places along x, and the values of each curve there (null where there is none). */
  show(data) {
    this.#data = data;
    if (this.#plot) this.#plot.setData(data);
    else this.#resize();
    this.markAt(this.#at);
  }

  get data() {
    return this.#data;
  }

  /** Mark a place along x, for example the frame that is shown. */
  markAt(at) {
    this.#at = at;
    this.mark.hidden = at === null || !this.#plot;
    if (this.mark.hidden) return;
    this.mark.style.left = `${this.#plot.valToPos(at, "x")}px`;
  }

  repaint() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#resize();
  }
}

/** Draw all plots again in the colours of the page, which have changed. */
export function repaintPlots() {
  for (const plot of made) plot.repaint();
}

export function legend(place, entries) {
  place.replaceChildren(...entries.map(([name, colour, dash]) => {
    const stroke = el("i");
    stroke.style.color = `var(--${colour})`;
    stroke.style.borderTopStyle = dash ?? "solid";
    return el("span", {}, stroke, name);
  }));
}
