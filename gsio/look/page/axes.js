// The sliders along the axes of a batch or a sweep: they choose the member that is shown.

import { $, el, say } from "./dom.js";
import { word } from "./format.js";
import { set, view } from "./view.js";

/** Show a member; the point and the line stay where they are. */
function choose(member) {
  const moved = (mark) => mark && { ...mark, member };
  set({ member, point: moved(view.point), line: moved(view.line) });
}

export class Axes {
  sliders = [];

  constructor() {
    this.all = el("button", { type: "button", className: "worded", title: "Show all members as tiles" }, "all");
    this.all.addEventListener("click", () => (view.member === "all" ? choose(0) : set({ member: "all" })));
  }

  /** Show the place of the member that is shown along each axis of an output. */
  show(output) {
    const { axes, places, values } = output;
    const key = JSON.stringify([output.number, output.group, axes.map(({ name, size }) => [name, size])]);
    if (key !== this.key) this.#build(output);
    this.key = key;
    $("#axes").hidden = !axes.length;
    this.all.hidden = output.exact === "window";
    const all = view.member === "all" && output.exact !== "window"; // else the first member is shown
    this.all.setAttribute("aria-pressed", all);
    this.sliders.forEach(({ slider, value, beside }, i) => {
      const { name, size, keys } = axes[i];
      const others = Object.keys(keys).filter((other) => other !== name).map((other) => `${other} ${word(values[other])}`);
      const here = all ? "all" : word(values[name] ?? places[i]);
      slider.value = places[i];
      slider.style.setProperty("--done", `${(100 * places[i]) / (size - 1 || 1)}%`);
      say(value, here);
      say(beside, all ? "" : others.join(", "));
      slider.setAttribute("aria-valuetext", [here, beside.textContent].filter(Boolean).join(", "));
    });
  }

  #build(output) {
    this.sliders = output.axes.map(({ name, size }) => {
      const slider = el("input", { type: "range", max: size - 1, disabled: size < 2, "aria-label": name });
      slider.addEventListener("input", () => {
        choose(output.axes.reduce((member, axis, i) => member * axis.size + Number(this.sliders[i].slider.value), 0));
      });
      return { name, slider, value: el("output"), beside: el("small") };
    });
    $("#axes").replaceChildren(...this.sliders.map(({ name, slider, value, beside }) => (
      el("label", { className: "axis" }, el("span", {}, name.replaceAll("_", " ")), slider, value, beside)
    )), this.all);
  }
}
