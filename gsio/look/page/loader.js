// Decides what one pane draws now, and asks for the rest: proxies while the slider moves, exact values when it rests.

import { DAMAGED, isAbort } from "./net.js";

const CHEAP = 400_000; // cells of a frame that is painted as quickly as a proxy
const MOST = 4 * 2 ** 20; // cells in one answer of the window route
// Beside a run: ms between two exact frames and between two previews, and the share of time that exact frames may take.
const LIVE = { pause: 1000, share: 0.015, longest: 10_000, proxy: 700 };

export class Loader {
  pending = null; // {key, controller} of the exact frame on its way
  content = null; // what is drawn: {kind, frame, field, members, patch, proxies}
  patch = null; // the newest part of a large grid
  trouble = null; // {key, text, status}: why a frame could not be had
  arrived = null; // {frame, field, began}: the newest answer, and when it was asked for
  wish = null; // the newest
  nextExact = 0;
  nextProxy = 0;
  asksProxy = false;

  constructor(output, exact, onArrival) {
    this.output = output;
    this.exact = exact;
    this.onArrival = onArrival;
  }

  clear() {
    clearTimeout(this.timer);
    this.pending?.controller.abort();
    Object.assign(this, { pending: null, patch: null, trouble: null, nextExact: 0, nextProxy: 0 });
  }

  /** Return the content for a wish {frame, field, members, moving, live, seen, region}, or the old one until it is here. */
  update(wish) {
    const { output } = this;
    this.wish = wish;
    if (!output.frames || output.gone) return this.content;
    const patch = this.#patchFor(wish);
    const proxies = wish.members.map((member) => output.proxies.get(wish.field, member, wish.frame));
    const proxied = proxies.every(Boolean);
    const cheap = output.rows * output.cols * wish.members.length <= CHEAP;
    const base = { frame: wish.frame, field: wish.field, members: wish.members, proxies: proxied ? proxies : null };
    if (patch && (cheap || !wish.moving || !proxied)) this.content = { ...base, kind: "exact", patch };
    else if (proxied) this.content = { ...base, kind: "proxy", patch: null };
    if (!patch && !(wish.moving && proxied)) this.#ask(wish, proxied);
    if (patch || (wish.moving && proxied)) this.trouble = null;
    return this.content;
  }

  #patchFor({ frame, field, members, seen, region }) {
    if (this.output.exact === "chunk") return this.exact.peek(this.output, field, frame);
    const { patch } = this;
    const right = patch?.frame === frame && patch.field === field && patch.member === members[0];
    if (!right || patch.step > region.step) return null;
    const [bottom, rightmost] = [patch.top + patch.rows * patch.step, patch.left + patch.cols * patch.step];
    const covers = patch.top <= seen.top && patch.left <= seen.left && bottom >= seen.bottom && rightmost >= seen.right;
    return covers ? patch : null;
  }

  /** Whether an answer is on its way, after which `onArrival` is called. */
  get busy() {
    return this.pending !== null || this.asksProxy;
  }

  #ask(wish, proxied) {
    const now = performance.now();
    const key = this.#key(wish);
    if (this.pending?.key === key || (this.trouble?.key === key && now < this.trouble.again)) return;
    if (this.pending && (wish.moving || wish.live)) return; // the newest wish follows when the answer is here
    if (wish.live && now < this.nextExact) {
      this.#later(Math.max(LIVE.pause, this.nextExact - now)); // the next event may come first
      if (!proxied) this.#askProxy(wish, now);
      return;
    }
    this.pending?.controller.abort();
    this.#fetch(wish, key, now);
  }

  #key({ frame, field, members, region }) {
    const part = this.output.exact === "window" ? Object.values(region).join(" ") + members[0] : "";
    return `${this.output.group} ${frame} ${field} ${part}`;
  }

  async #fetch(wish, key, began) {
    const controller = new AbortController();
    const { signal } = controller;
    clearTimeout(this.timer);
    this.pending = { key, controller };
    if (wish.live) this.nextProxy = began + LIVE.proxy; // one request for each event is enough
    try {
      const patch = await this.#load(wish, signal);
      if (signal.aborted) return;
      this.trouble = null;
      this.arrived = { frame: wish.frame, field: wish.field, began };
      if (wish.moving || wish.live) {
        this.content = { kind: "exact", frame: wish.frame, field: wish.field, members: wish.members, proxies: null, patch };
      }
    } catch (error) {
      if (signal.aborted || isAbort(error)) return;
      const again = error.status === DAMAGED ? 5000 : 2000;
      this.trouble = { key, frame: wish.frame, text: error.message, status: error.status, again: performance.now() + again };
      this.#later(again + 1);
    } finally {
      if (this.pending?.controller === controller) this.pending = null;
      const took = performance.now() - began;
      if (wish.live) this.nextExact = performance.now() + Math.min(LIVE.longest, Math.max(LIVE.pause, took / LIVE.share));
      this.onArrival();
    }
  }

  async #load({ field, members, frame, region }, signal) {
    if (this.output.exact === "chunk") return this.exact.load(this.output, field, frame, signal);
    const patch = await this.exact.window(this.output, field, members[0], frame, region, signal);
    this.patch = Object.assign(patch, { field, member: members[0] });
    return patch;
  }

  async #askProxy({ field, members, frame }, now) {
    if (now < this.nextProxy || members.length > 1) return;
    this.nextProxy = now + LIVE.proxy;
    this.asksProxy = true;
    try {
      await this.output.proxies.fetchOne(field, members[0], frame);
      const proxy = this.output.proxies.get(field, members[0], frame);
      if (proxy) this.content = { kind: "proxy", frame, field, members, proxies: [proxy], patch: null };
    } catch (error) {
      if (!isAbort(error)) this.nextProxy = now + 5 * LIVE.proxy;
    }
    this.asksProxy = false;
    this.onArrival();
  }

  /** Ask for the newest wish again after a while; the answer draws. */
  #later(milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.update(this.wish);
      if (!this.busy) this.onArrival();
    }, milliseconds);
  }
}

/** Return the part of a large grid to ask for: what is visible and some more, with at most one cell a pixel. */
export function regionOf(picture, rows, cols) {
  const seen = picture.visible;
  const margin = 0.1;
  const [high, wide] = [seen.bottom - seen.top, seen.right - seen.left];
  const pixels = picture.scale * (window.devicePixelRatio || 1);
  let step = Math.max(1, 2 ** Math.floor(Math.log2(1 / pixels)));
  const cells = () => Math.ceil((high * (1 + 2 * margin)) / step + 1) * Math.ceil((wide * (1 + 2 * margin)) / step + 1);
  while (cells() > MOST) step *= 2;
  const down = (value) => Math.max(0, Math.floor(value / step) * step);
  return {
    top: down(seen.top - margin * high), bottom: Math.min(rows, Math.ceil(seen.bottom + margin * high)),
    left: down(seen.left - margin * wide), right: Math.min(cols, Math.ceil(seen.right + margin * wide)), step,
  };
}
