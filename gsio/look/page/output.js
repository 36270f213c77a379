// One output as the server describes it, with its series over time and its proxies.

import { getJson } from "./net.js";
import { Proxies } from "./proxies.js";

/** Return limits that differ, as gsio's pictures have them. */
function contrast(low, high) {
  return low < high ? [low, high] : [low, low + Math.max(1, Math.abs(low)) * 2 ** -10];
}

export class Output {
  fields = []; // none is known before the output exists
  members = 1;
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

  get live() {
    return !this.gone && this.state === "running";
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
      this.note = "Another run has replaced this output.";
    } else if (before !== this.state || back) {
      this.note = this.#noteOf(before);
    }
    if (described.progress?.occupied) this.history = [...this.history.slice(-239), described.progress.occupied];
    return replaced;
  }

  #noteOf(before) {
    if (this.state === "killed") return "The run was killed. All committed frames are here; gsio run --resume goes on.";
    if (this.state === "failed") return "The run failed. All committed frames are here.";
    if (this.state === "stopped") return "The run stopped early with a checkpoint; gsio run --resume goes on.";
    if (this.state === "running" && before !== "waiting") return "The run goes on.";
    return "";
  }

  remove() {
    this.gone = true;
    this.note = "The output was deleted. The last picture stays.";
  }

  /** Fetch the part of the series that is missing. */
  async readSeries() {
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
