// One output as the server describes it, with its series over time and its proxies.

import { getJson } from "./net.js";
import { Proxies } from "./proxies.js";
import { view } from "./view.js";

/** How the page names what has become of a member of a sweep, by the digit in `states`. */
const STATES = ["pending", "complete", "diverged", "failed"];

/** Return limits that differ, as gsio's pictures have them. */
function contrast(low, high) {
  return low < high ? [low, high] : [low, low + Math.max(1, Math.abs(low)) * 2 ** -10];
}

export class Output {
  fields = []; // none is known before the output exists
  members = 1;
  axes = []; // {name, size, keys}: along these the members differ
  series = { time: [], step: [], stats: {} };
  ranges = {}; // by field: least and greatest value of the frames before `next`
  progress = null;
  gone = false;
  note = ""; // one line on what happened to the output
  read = -Infinity; // when the series were asked for
  history = []; // of `progress.occupied`, the newest last

  constructor(described, onArrival) {
    Object.assign(this, described);
    this.proxies = new Proxies(this, onArrival);
  }

  /** Whether frames are added at the end: a sweep adds whole members. */
  get live() {
    return !this.gone && this.state === "running" && !this.states;
  }

  /** The member that is shown, the first one of several. */
  get member() {
    return this.membersOf(view.member)[0];
  }

  /** The number of frames of the member that is shown: one of a sweep can have none, or only the first. */
  get framesHere() {
    if (!this.states || this.states[this.member] === "1") return this.frames;
    return this.parts[this.member] ?? 0;
  }

  /** What has become of the member that is shown, if the output is the result of a sweep. */
  get stateOfMember() {
    return this.states ? STATES[this.states[this.member]] : "";
  }

  /** The number of members of a sweep that are complete. */
  get complete() {
    return this.states.replaceAll(/[^1]/g, "").length;
  }

  /** The place of the member that is shown along each axis. */
  get places() {
    let rest = this.member;
    return this.axes.map(({ size }) => size).reverse().map((size) => {
      const place = rest % size;
      rest = (rest - place) / size;
      return place;
    }).reverse();
  }

  /** The values that set the member apart that is shown, by the name of the key. */
  get values() {
    const { places } = this;
    return Object.fromEntries(this.axes.flatMap(({ keys }, axis) => (
      Object.entries(keys).map(([key, values]) => [key, values[places[axis]]])
    )));
  }

  get last() {
    return Math.max(0, this.frames - 1);
  }

  /** Take a newer description. Returns whether another run's output took the place of this one. */
  update(described) {
    const before = this.state;
    this.progress = described.progress;
    if (!described.group) {
      if (!this.group) Object.assign(this, described); // it does not exist yet; a deleted one keeps its last picture
      return false;
    }
    const replaced = this.group !== undefined && (described.group !== this.group || described.frames < this.frames);
    const back = this.gone;
    Object.assign(this, described, { gone: false });
    if (replaced) {
      this.proxies.clear();
      this.series = { time: [], step: [], stats: {} };
      this.history = [];
      this.ranges = {};
      this.axes = [];
      this.note = "Another run has replaced this output.";
    } else if (before !== this.state || back) {
      this.note = this.#noteOf(before);
    }
    if (described.progress?.occupied) this.history = [...this.history.slice(-239), described.progress.occupied];
    return replaced;
  }

  #noteOf(before) {
    if (this.states) return this.#noteOfSweep();
    if (this.state === "killed") return "The run was killed. All committed frames are here; gsio run --resume goes on.";
    if (this.state === "failed") return "The run failed. All committed frames are here.";
    if (this.state === "stopped") return "The run stopped early with a checkpoint; gsio run --resume goes on.";
    if (this.state === "running" && before !== "waiting") return "The run goes on.";
    return "";
  }

  #noteOfSweep() {
    const ended = { killed: "was killed", stopped: "has stopped early", failed: "has ended, and some members failed" };
    if (!ended[this.state]) return "";
    return `The sweep ${ended[this.state]}. All members that are complete are here; the same gsio sweep goes on.`;
  }

  remove() {
    this.gone = true;
    this.note = "The output was deleted. The last picture stays.";
  }

  /** Fetch the axes, and the part of the series that is missing. */
  async readSeries() {
    const { group } = this;
    if ((this.members > 1 || this.states) && !this.axes.length) {
      const axes = await getJson(`outputs/${this.number}/axes`);
      if (group !== this.group) return; // another output has taken its place
      this.axes = axes;
    }
    if (this.states) return; // members of a sweep have no statistics, and times of their own
    const from = this.series.time.length;
    if (from >= this.frames) return;
    const { time, step, stats } = await getJson(`outputs/${this.number}/series?from=${from}`);
    if (from !== this.series.time.length) return; // another answer came first
    this.series.time.push(...time);
    this.series.step.push(...step);
    for (const [name, values] of Object.entries(stats)) (this.series.stats[name] ??= []).push(...values);
  }

  /** Return the limits of `mode`: "auto", "frame" or two numbers. */
  limits(mode, field, frame) {
    if (Array.isArray(mode)) return mode;
    if (this.states) return contrast(...this.proxies.limits(field, mode === "frame" ? this.proxies.get(field, this.member, frame) : null));
    const least = this.series.stats[`${field}_min`] ?? [];
    const most = this.series.stats[`${field}_max`] ?? [];
    const known = mode === "frame" ? null : (this.ranges[field] ??= { next: 0, low: Infinity, high: -Infinity });
    let { next, low, high } = known ?? { next: frame, low: Infinity, high: -Infinity };
    for (const end = known ? least.length : frame + 1; next < end; next++) {
      low = Math.min(low, ...[least[next] ?? Infinity].flat());
      high = Math.max(high, ...[most[next] ?? -Infinity].flat());
    }
    if (known) Object.assign(known, { next, low, high });
    return Number.isFinite(low) && Number.isFinite(high) ? contrast(low, high) : [0, 1];
  }

  timeOf(frame) {
    if (this.states) {
      const { dt, steps_per_frame: steps } = { ...this, ...this.values }; // members can differ in both
      return (frame + 1) * steps * dt;
    }
    return this.series.time[frame] ?? frame * this.interval;
  }

  /** Return the committed frame whose model time is nearest. */
  frameAt(time) {
    let [low, high] = [0, this.last];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.timeOf(middle) < time) low = middle + 1;
      else high = middle;
    }
    return low > 0 && time - this.timeOf(low - 1) <= this.timeOf(low) - time ? low - 1 : low;
  }

  fieldOf(wanted) {
    return this.fields.includes(wanted) ? wanted : this.fields.at(-1);
  }

  /** Return the members that `wanted`, a number or "all", names; large grids are shown one at a time. */
  membersOf(wanted) {
    if (wanted === "all" && this.exact !== "window") return Array.from({ length: this.members }, (_, member) => member);
    return [wanted === "all" ? 0 : Math.min(wanted, this.members - 1)];
  }
}
