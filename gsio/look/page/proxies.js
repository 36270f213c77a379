// Small 8-bit pictures of all frames, fetched in groups ahead of the slider and kept in memory.

import { getBytes, isAbort } from "./net.js";

const BUDGET = 320 * 2 ** 20; // bytes in memory, of each output
const AT_ONCE = 2; // requests for groups
const REST = 3000; // ms without requests after an error

export class Proxies {
  groups = new Map(); // "field member number" → {size in bytes, frames: [proxy]}
  newest = new Map(); // "field member" → {frame, proxy}: the newest frame of a running output
  busy = new Map(); // key → AbortController
  failed = new Set();
  bytes = 0;
  ranges = {}; // by field: least and greatest value of the previews of members that are complete
  wanted = null;
  rests = false; // after an error

  constructor(output, onArrival) {
    this.output = output;
    this.onArrival = onArrival;
  }

  /** The number of cells of the grid along a side of a cell of a proxy. */
  get factor() {
    const { rows, cols, proxy } = this.output;
    return rows > cols ? Math.ceil(rows / proxy.rows) : Math.ceil(cols / proxy.cols);
  }

  get(field, member, frame) {
    const { group } = this.output.proxy;
    const found = this.groups.get(`${field} ${member} ${Math.floor(frame / group)}`)?.frames[frame % group];
    if (found) return found;
    const newest = this.newest.get(`${field} ${member}`);
    return newest?.frame === frame ? newest.proxy : null;
  }

  /** Whether the frames of a group are in memory, for the strip under the slider. */
  has(field, members, group) {
    return members.every((member) => this.groups.has(`${field} ${member} ${group}`));
  }

  clear() {
    for (const controller of this.busy.values()) controller.abort();
    this.groups.clear();
    this.newest.clear();
    this.failed.clear();
    this.bytes = 0;
    this.ranges = {};
  }

  /** Return the range of a preview, or else of all that were fetched, for an output without statistics. */
  limits(field, one) {
    return one ? [one.low, one.high] : this.ranges[field] ?? [0, 1];
  }

  /** Fetch groups, those nearest to `frame` first, until the memory is full; begin none while something else `waits`.
   * A page that `follows` a run asks only for what the server has ready. */
  fetchAround(field, members, frame, { waits, follows }) {
    this.wanted = { field, members, frame, waits, follows };
    this.#next();
  }

  #bytesOfGroup() {
    const { rows, cols, group } = this.output.proxy;
    return rows * cols * group;
  }

  #distance(key) {
    const [field, member, number] = key.split(" ");
    const { field: wanted, members, frame } = this.wanted;
    if (field !== wanted || !members.includes(Number(member))) return Infinity;
    return Math.abs(Number(number) - Math.floor(frame / this.output.proxy.group));
  }

  /** Return the nearest group that is missing: a group of a running output only if the server has it ready. */
  #nearest() {
    const { field, members, frame, follows } = this.wanted;
    const { output } = this;
    const size = output.proxy.group;
    const last = Math.ceil(output.framesHere / size) - 1;
    const here = Math.floor(frame / size);
    const most = Math.floor(BUDGET / this.#bytesOfGroup() / members.length);
    const ready = output.live ? Math.floor((output.proxied ?? 0) / size) : last + 1;
    for (let away = 0; away <= last && away * 2 <= most; away++) {
      for (const number of away ? [here + away, here - away] : [here]) {
        if (number < 0 || number > last || (number >= ready && (away || follows))) continue;
        const committed = Math.min(size, output.framesHere - number * size);
        for (const member of members) {
          const key = `${field} ${member} ${number}`;
          const enough = (this.groups.get(key)?.frames.length ?? 0) >= (number < ready ? committed : 1);
          if (!enough && !this.busy.has(key) && !this.failed.has(key)) return [key, away];
        }
      }
    }
    return null;
  }

  #next() {
    while (this.wanted && !this.rests && !this.wanted.waits && this.busy.size < AT_ONCE) {
      const found = this.#nearest();
      if (!found || !this.#makeRoom(found[1])) return;
      this.#fetch(found[0]);
    }
  }

  #makeRoom(distance) {
    const more = this.#bytesOfGroup();
    while (this.bytes + more > BUDGET) {
      let far = null;
      for (const key of this.groups.keys()) if (!far || this.#distance(key) > this.#distance(far)) far = key;
      if (!far || this.#distance(far) <= distance) return false;
      this.bytes -= this.groups.get(far).size;
      this.groups.delete(far);
    }
    return true;
  }

  async #fetch(key) {
    const controller = new AbortController();
    this.busy.set(key, controller);
    try {
      const [field, member, number] = key.split(" ");
      const bytes = await getBytes(`outputs/${this.output.number}/proxies/${field}/${member}/${number}`, controller.signal);
      if (controller.signal.aborted) return;
      this.bytes += bytes.length - (this.groups.get(key)?.size ?? 0);
      const frames = this.#split(bytes);
      this.groups.set(key, { size: bytes.length, frames });
      if (this.output.states?.[member] === "1") this.#widen(field, frames);
      this.onArrival();
    } catch (error) {
      if (!isAbort(error)) this.#fail(key);
    } finally {
      if (this.busy.get(key) === controller) this.busy.delete(key);
      this.#next();
    }
  }

  #widen(field, frames) {
    const [low, high] = this.ranges[field] ?? [Infinity, -Infinity];
    const known = frames.filter(Boolean);
    if (known.length) this.ranges[field] = [Math.min(low, ...known.map((one) => one.low)), Math.max(high, ...known.map((one) => one.high))];
  }

  /** Leave a group out for a while, and the server alone for a shorter one; the exact frames say what is wrong. */
  #fail(key) {
    this.failed.add(key);
    this.rests = true;
    setTimeout(() => {
      this.rests = false;
      this.#next();
    }, REST);
    setTimeout(() => this.failed.delete(key), 10 * REST);
  }

  #split(bytes) {
    const { rows, cols } = this.output.proxy;
    const size = 8 + rows * cols;
    const view = new DataView(bytes.buffer, bytes.byteOffset);
    return Array.from({ length: Math.floor(bytes.length / size) }, (_, i) => {
      const [low, high] = [view.getFloat32(i * size, true), view.getFloat32(i * size + 4, true)];
      if (Number.isNaN(low)) return null; // the frame cannot be read
      return { low, high, bytes: bytes.subarray(i * size + 8, (i + 1) * size) };
    });
  }

  /** Fetch the proxy of one frame, for the newest frame of a running output. */
  async fetchOne(field, member, frame) {
    const bytes = await getBytes(`outputs/${this.output.number}/proxy/${field}/${member}/${frame}`);
    const [proxy] = this.#split(bytes);
    if (proxy) this.newest.set(`${field} ${member}`, { frame, proxy });
  }

  /** Return the values of a cell in all proxies in memory: [frames, values], about right. */
  series(field, member, row, col) {
    const { frames: committed, proxy } = this.output;
    const at = Math.floor(row / this.factor) * proxy.cols + Math.floor(col / this.factor);
    const frames = [];
    const values = [];
    for (let number = 0; number * proxy.group < committed; number++) {
      this.groups.get(`${field} ${member} ${number}`)?.frames.forEach((found, i) => {
        if (!found) return;
        frames.push(number * proxy.group + i);
        values.push(found.low + (found.bytes[at] / 255) * (found.high - found.low));
      });
    }
    return [frames, values];
  }
}
