// What the pointer does on a picture: it hovers, clicks a point, moves or zooms the picture, or draws a profile.

import { set, view } from "./view.js";

const STILL = 4; // CSS pixels that a click may move
const NOTCH = 1.0015; // zoom for a pixel of the wheel
const PINCH = 7; // pixels of the wheel for a pixel of a pinch on a touchpad, which browsers send as a wheel with ctrl

export class Pointer {
  start = null; // {x, y, cell, zoom, profile, moved} while a button is down
  last = null; // [x, y] of the newest place over the stage
  down = new Map(); // pointer's id → [x, y] while it is down

  constructor(pane) {
    this.pane = pane;
    const { stage } = pane;
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    stage.addEventListener("pointerup", (event) => this.#up(event));
    stage.addEventListener("pointercancel", (event) => this.#end(event));
    stage.addEventListener("pointerleave", () => {
      this.last = null;
      this.again();
    });
    stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Read the value under the pointer again, or that of the chosen point while no pointer is over the picture. */
  again() {
    const { pane, last } = this;
    pane.hover(last ? pane.picture.cellAt(...last) : pane.cellOf(view.point));
  }

  #place(event) {
    const box = this.pane.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #down(event) {
    if (event.button !== 0) return;
    const [x, y] = this.#place(event);
    const profile = view.mode === "profile" || event.shiftKey;
    this.down.set(event.pointerId, [x, y]);
    this.pane.stage.setPointerCapture(event.pointerId);
    this.start = this.down.size > 1 ? null : { x, y, cell: this.pane.picture.cellAt(x, y), profile, moved: false };
  }

  #move(event) {
    const [x, y] = this.#place(event);
    this.last = [x, y];
    if (this.down.size === 2 && this.down.has(event.pointerId)) return this.#pinch(event.pointerId, [x, y]);
    const { start, pane } = this;
    if (start && Math.hypot(x - start.x, y - start.y) > STILL) start.moved = true;
    if (start?.moved && start.profile) this.#stretch(x, y);
    else if (start?.moved && view.zoom.factor > 1) {
      pane.picture.zoom = view.zoom;
      set({ zoom: pane.picture.moved(x - start.x, y - start.y) });
      [start.x, start.y] = [x, y];
    }
    return this.again();
  }

  /** Zoom and move the picture with two fingers, one of which has come to `place`. */
  #pinch(id, place) {
    const { picture } = this.pane;
    const spread = () => {
      const [[ax, ay], [bx, by]] = this.down.values();
      return { x: (ax + bx) / 2, y: (ay + by) / 2, size: Math.max(1, Math.hypot(ax - bx, ay - by)) };
    };
    const before = spread();
    this.down.set(id, place);
    const { x, y, size } = spread();
    picture.zoom = view.zoom;
    picture.zoom = picture.zoomed(size / before.size, before.x, before.y);
    set({ zoom: picture.moved(x - before.x, y - before.y) });
  }

  #end(event) {
    this.down.delete(event.pointerId);
    this.start = null;
  }

  #stretch(x, y) {
    const { start, pane } = this;
    const to = pane.picture.cellAt(x, y);
    if (!start.cell || to?.tile !== start.cell.tile) return;
    const member = pane.output.membersOf(view.member)[to.tile];
    set({ line: { from: [start.cell.row, start.cell.col], to: [to.row, to.col], member } });
  }

  #up(event) {
    const { start, pane } = this;
    this.#end(event);
    if (!start || start.moved || !start.cell) return;
    const { row, col, tile } = start.cell;
    set({ point: { row, col, member: pane.output.membersOf(view.member)[tile] } });
  }

  #wheel(event) {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode ? 33 : 1) * (event.ctrlKey ? PINCH : 1);
    this.pane.picture.zoom = view.zoom;
    set({ zoom: this.pane.picture.zoomed(NOTCH ** -pixels, ...this.#place(event)) });
  }
}
