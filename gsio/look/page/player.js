// The bar at the bottom: play, the slider, the frame number, the speed, and follow.

import { $, say, shade, token } from "./dom.js";
import { count } from "./format.js";
import { refresh, set, view } from "./view.js";

const STRIP = 1024; // pixels of the strip under the slider, which the style stretches
const PATIENCE = 2000; // ms that playing waits for a frame that does not come

export class Player {
  due = 0; // when the next frame is due
  waits = 0; // since when playing waits for a frame

  /** `active()` returns the pane that the slider belongs to. */
  constructor(active) {
    this.active = active;
    $("#play").addEventListener("click", () => this.toggle());
    $("#back").addEventListener("click", () => this.step(-1));
    $("#on").addEventListener("click", () => this.step(1));
    $("#slider").addEventListener("input", ({ target }) => this.go(Number(target.value)));
    $("#frame").addEventListener("change", ({ target }) => this.#typed(target));
    $("#speed").addEventListener("change", ({ target }) => set({ speed: Number(target.value) }));
    $("#loop").addEventListener("click", () => set({ loop: !view.loop }));
    $("#follow").addEventListener("click", () => this.follow());
  }

  get last() {
    return Math.max(0, this.active().output.framesHere - 1);
  }

  #typed(input) {
    const frame = Number(input.value.replace(/\s/g, ""));
    if (input.value.trim() && Number.isInteger(frame)) this.go(frame < 0 ? this.last + 1 + frame : frame);
    refresh("frame"); // a text that was no number gives way to the old number
    input.blur();
  }

  /** Go to a frame, or to the nearest that exists. */
  go(frame) {
    set({ frame: Math.min(this.last, Math.max(0, frame)), follow: false });
  }

  step(by) {
    set({ playing: false });
    this.go(view.frame + by);
  }

  follow() {
    set({ follow: !view.follow, playing: false, ...(view.follow ? {} : { frame: this.last }) }, { moves: false });
  }

  toggle() {
    const playing = !view.playing;
    const again = playing && view.frame >= this.last;
    set({ playing, follow: false, ...(again ? { frame: 0 } : {}) });
    this.due = this.waits = 0;
    if (playing) requestAnimationFrame((now) => this.#tick(now));
  }

  /** Show the next frame when it is due and the one before is on the screen. */
  #tick(now) {
    if (!view.playing) return;
    requestAnimationFrame((next) => this.#tick(next));
    this.due ||= now + 1000 / view.speed;
    if (now < this.due) return;
    const arrived = this.active().shown?.frame === view.frame;
    this.waits ||= now;
    if (!arrived && now - this.waits < PATIENCE) return;
    const late = arrived ? Math.floor((now - this.due) * view.speed / 1000) : 0;
    this.waits = 0;
    this.due = Math.max(this.due + 1000 * (1 + late) / view.speed, now);
    this.#advance(1 + Math.min(late, 3));
  }

  #advance(by) {
    const frame = view.frame + by;
    if (frame <= this.last) return set({ frame });
    if (view.loop) return set({ frame: 0 });
    return set({ frame: this.last, playing: false });
  }

  show() {
    const { output } = this.active();
    const slider = $("#slider");
    slider.max = output.last;
    slider.value = view.frame;
    slider.disabled = !output.framesHere;
    slider.setAttribute("aria-valuetext", `frame ${view.frame} of ${output.frames}`);
    slider.style.setProperty("--done", `${(100 * view.frame) / (output.last || 1)}%`);
    if (document.activeElement !== $("#frame")) $("#frame").value = String(view.frame);
    say($("#frames"), `/ ${count(output.last)}`);
    $("#speed").value = String(view.speed);
    const { playing } = view;
    $("#play").setAttribute("aria-label", playing ? "Pause" : "Play");
    $("#play-icon").setAttribute("href", playing ? "#i-pause" : "#i-play");
    for (const name of ["loop", "follow"]) $(`#${name}`).setAttribute("aria-pressed", view[name]);
    this.#drawLoaded(output);
  }

  /** Draw which previews are in memory, as a strip under the slider. */
  #drawLoaded(output) {
    const canvas = $("#loaded");
    const { frames, number, proxies } = output;
    const key = [number, frames, proxies.groups.size, view.member, view.field, shade()].join(" ");
    if (key === this.drawn) return;
    this.drawn = key;
    const context = canvas.getContext("2d");
    [canvas.width, canvas.height] = [STRIP, 1]; // clears it
    if (!output.frames) return;
    context.fillStyle = token("ink-faint");
    const members = output.membersOf(view.member);
    const size = output.proxy.group;
    const scale = canvas.width / output.frames;
    for (let group = 0; group * size < output.frames; group++) {
      if (!output.proxies.has(output.fieldOf(view.field), members, group)) continue;
      context.fillRect(group * size * scale, 0, Math.max(1, size * scale), 1);
    }
  }
}
