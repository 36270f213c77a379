// What the pointer does on a picture: it hovers, clicks a point, moves the zoomed picture, or draws a profile.

import { set, view } from "./view.js";

const STILL = 4; // CSS pixels that a click may move
const NOTCH = 1.0015; // zoom for a pixel of the wheel

export class Pointer {
  start = null; // {x, y, cell, zoom, profile, moved} while a button is down
  last = null; // [x, y] of the newest place over the stage

  constructor(pane) {
    this.pane = pane;
    const { stage } = pane;
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    stage.addEventListener("pointerup", (event) => this.#up(event));
    stage.addEventListener("pointercancel", () => (this.start = null));
    stage.addEventListener("pointerleave", () => {
      this.last = null;
      pane.hover(null);
    });
    stage.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
  }

  /** Read the value under the pointer again, after the picture has changed. */
  again() {
    if (this.last) this.pane.hover(this.pane.picture.cellAt(...this.last));
  }

  #place(event) {
    const box = this.pane.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  #down(event) {
    if (event.button !== 0) return;
    const [x, y] = this.#place(event);
    const profile = view.mode === "profile" || event.shiftKey;
    this.start = { x, y, cell: this.pane.picture.cellAt(x, y), profile, moved: false };
    this.pane.stage.setPointerCapture(event.pointerId);
  }

  #move(event) {
    const [x, y] = this.#place(event);
    this.last = [x, y];
    const { start, pane } = this;
    if (start && Math.hypot(x - start.x, y - start.y) > STILL) start.moved = true;
    if (start?.moved && start.profile) this.#stretch(x, y);
    else if (start?.moved && view.zoom.factor > 1) {
      pane.picture.zoom = view.zoom;
      set({ zoom: pane.picture.moved(x - start.x, y - start.y) });
      [start.x, start.y] = [x, y];
    }
    this.again();
  }

  #stretch(x, y) {
    const { start, pane } = this;
    const to = pane.picture.cellAt(x, y);
    if (!start.cell || to?.tile !== start.cell.tile) return;
    const member = pane.output.membersOf(view.member)[to.tile];
    set({ line: { from: [start.cell.row, start.cell.col], to: [to.row, to.col], member } });
  }

  #up() {
    const { start, pane } = this;
    this.start = null;
    if (!start || start.moved || !start.cell) return;
    const { row, col, tile } = start.cell;
    set({ point: { row, col, member: pane.output.membersOf(view.member)[tile] } });
  }

  #wheel(event) {
    event.preventDefault();
    const pixels = event.deltaY * (event.deltaMode ? 33 : 1);
    this.pane.picture.zoom = view.zoom;
    set({ zoom: this.pane.picture.zoomed(NOTCH ** -pixels, ...this.#place(event)) });
  }
}
