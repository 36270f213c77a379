// A canvas that shows a grid, zoomed and moved: layers of painted cells, marks over them, and the way back to cells.

import { shade, token } from "./dom.js";

const GAP = 0.02; // between tiles, as a share of their longer side
const DEEPEST = 64; // CSS pixels a cell at the deepest zoom
const CRISP = 2; // device pixels a cell from which on cells have sharp edges

/** A canvas of painted cells: one tile for each member, packed without gaps. */
export class Sheet {
  canvas = document.createElement("canvas");
  key = "";

  resize(cols, rows, tiles) {
    this.across = Math.ceil(Math.sqrt(tiles));
    const [width, height] = [cols * this.across, rows * Math.ceil(tiles / this.across)];
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
    }
    this.context ??= this.canvas.getContext("2d", { willReadFrequently: true });
    if (this.image?.width !== cols || this.image?.height !== rows) this.image = new ImageData(cols, rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
    [this.cols, this.rows] = [cols, rows];
  }

  /** Show `pixels` as tile number `tile`. */
  put(tile) {
    const [x, y] = this.corner(tile);
    this.context.putImageData(this.image, x, y);
  }

  corner(tile) {
    return [(tile % this.across) * this.cols, Math.floor(tile / this.across) * this.rows];
  }
}

export class Picture {
  width = 0; // CSS pixels of the stage
  height = 0;
  layers = []; // {sheet, top, left, rows, cols, from}: where in the grid `from` columns and rows of a sheet belong
  shape = { rows: 1, cols: 1, tiles: 1 };
  zoom = { factor: 1, x: 0.5, y: 0.5 };

  constructor(stage, canvas) {
    this.stage = stage;
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
  }

  /** Take the size of the stage, which has changed. */
  measure() {
    this.width = Math.max(1, this.stage.clientWidth);
    this.height = Math.max(1, this.stage.clientHeight);
  }

  /** Lay out the tiles so that they become as large as possible. */
  arrange(shape) {
    if (!this.width) this.measure();
    this.shape = shape;
    const { rows, cols, tiles } = shape;
    this.gap = tiles > 1 ? Math.ceil(GAP * Math.max(rows, cols)) : 0;
    let best = 0;
    for (let across = 1; across <= tiles; across++) {
      const [w, h] = this.#extent(across);
      const scale = Math.min(this.width / w, this.height / h);
      if (scale > best * 1.0001) [best, this.across] = [scale, across];
    }
    this.fit = best;
  }

  #extent(across) {
    const { rows, cols, tiles } = this.shape;
    const down = Math.ceil(tiles / across);
    return [across * cols + (across - 1) * this.gap, down * rows + (down - 1) * this.gap];
  }

  get scale() {
    return this.fit * this.zoom.factor;
  }

  get deepest() {
    return Math.max(1, DEEPEST / this.fit);
  }

  /** Return where the picture's corner lies in CSS pixels of the stage. */
  get origin() {
    const [w, h] = this.#extent(this.across);
    const along = (room, size, centre) =>
      size <= room ? (room - size) / 2 : Math.min(0, Math.max(room - size, room / 2 - centre * size));
    return [along(this.width, w * this.scale, this.zoom.x), along(this.height, h * this.scale, this.zoom.y)];
  }

  /** Return the zoom that is `times` as deep, with the cell under (x, y) at rest. */
  zoomed(times, x = this.width / 2, y = this.height / 2) {
    const factor = Math.min(this.deepest, Math.max(1, this.zoom.factor * times));
    return this.#placed(factor, x, y, this.#at(x, y));
  }

  /** Return the zoom after the picture was moved by (dx, dy) CSS pixels. */
  moved(dx, dy) {
    const [x, y] = [this.width / 2, this.height / 2];
    return this.#placed(this.zoom.factor, x, y, this.#at(x - dx, y - dy));
  }

  #at(x, y) {
    const [ox, oy] = this.origin;
    return [(x - ox) / this.scale, (y - oy) / this.scale];
  }

  #placed(factor, x, y, [atX, atY]) {
    const [w, h] = this.#extent(this.across);
    const scale = this.fit * factor;
    const centre = (at, pixel, room, size) => {
      const half = Math.min(0.5, room / (2 * size * scale));
      return Math.min(1 - half, Math.max(half, (at - (pixel - room / 2) / scale) / size));
    };
    return { factor, x: centre(atX, x, this.width, w), y: centre(atY, y, this.height, h) };
  }

  /** Return {row, col, tile} under a place of the stage, or null. */
  cellAt(x, y) {
    const { rows, cols, tiles } = this.shape;
    const [atX, atY] = this.#at(x, y);
    const [across, down] = [Math.floor(atX / (cols + this.gap)), Math.floor(atY / (rows + this.gap))];
    const [col, row] = [Math.floor(atX - across * (cols + this.gap)), Math.floor(atY - down * (rows + this.gap))];
    const tile = down * this.across + across;
    const onTile = across >= 0 && across < this.across && down >= 0 && tile < tiles;
    return onTile && row >= 0 && row < rows && col >= 0 && col < cols ? { row, col, tile } : null;
  }

  /** Return the visible part of the grid, for a picture of one tile. */
  get visible() {
    const { rows, cols } = this.shape;
    const [left, top] = this.#at(0, 0);
    const [right, bottom] = this.#at(this.width, this.height);
    const clamp = (value, most) => Math.min(most, Math.max(0, value));
    return {
      top: clamp(Math.floor(top), rows), bottom: clamp(Math.ceil(bottom), rows),
      left: clamp(Math.floor(left), cols), right: clamp(Math.ceil(right), cols),
    };
  }

  /** Return the visible part of the picture on the stage: {top, bottom, right} in CSS pixels. */
  get edges() {
    const [left, top] = this.origin;
    const [w, h] = this.#extent(this.across);
    return {
      top: Math.max(0, top), bottom: Math.min(this.height, top + h * this.scale),
      right: Math.min(this.width, left + w * this.scale),
    };
  }

  corner(tile) {
    const { rows, cols } = this.shape;
    const [ox, oy] = this.origin;
    const x = (tile % this.across) * (cols + this.gap);
    const y = Math.floor(tile / this.across) * (rows + this.gap);
    return [ox + x * this.scale, oy + y * this.scale];
  }

  draw(marks) {
    const { canvas, context } = this;
    const ratio = window.devicePixelRatio || 1;
    const places = this.layers.map(({ sheet, top, left }) => `${sheet.key} ${top} ${left}`);
    const key = JSON.stringify([places, marks, this.shape, this.zoom, this.width, this.height, ratio, shade()]);
    if (key === this.drawn) return;
    this.drawn = key;
    const [width, height] = [Math.round(this.width * ratio), Math.round(this.height * ratio)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = token("stage");
    context.fillRect(0, 0, this.width, this.height);
    const { scale } = this;
    for (const { sheet, top, left, rows, cols, from } of this.layers) {
      const cell = (scale * cols * ratio) / from[0];
      context.imageSmoothingEnabled = cell < CRISP || sheet.soft === true;
      for (let tile = 0; tile < this.shape.tiles; tile++) {
        const [x, y] = this.corner(tile);
        const [fromX, fromY] = sheet.corner(tile);
        context.drawImage(
          sheet.canvas, fromX, fromY, from[0], from[1],
          x + left * scale, y + top * scale, cols * scale, rows * scale,
        );
      }
    }
    if (marks.names) this.#drawNames(marks.names);
    if (marks.point) this.#drawPoint(marks.point);
    if (marks.line) this.#drawLine(marks.line);
  }

  #middle({ row, col, tile }) {
    const [x, y] = this.corner(tile);
    return [x + (col + 0.5) * this.scale, y + (row + 0.5) * this.scale];
  }

  /** Stroke a path twice, so that it is seen on light and on dark cells. */
  #stroke(path) {
    for (const [width, colour] of [[4, "rgb(0 0 0 / 0.65)"], [2, "#fff"]]) {
      this.context.lineWidth = width;
      this.context.strokeStyle = colour;
      this.context.stroke(path);
    }
  }

  /** Write a name into the corner of each tile that has room for it. */
  #drawNames(names) {
    const { context, shape } = this;
    if (shape.cols * this.scale < 48) return;
    context.font = `600 ${token("small")} system-ui, sans-serif`;
    names.forEach((name, tile) => {
      const [x, y] = this.corner(tile);
      const wide = context.measureText(name).width + 10;
      context.fillStyle = token("chip");
      context.beginPath();
      context.roundRect(x + 5, y + 5, wide, 18, 4);
      context.fill();
      context.fillStyle = token("ink");
      context.fillText(name, x + 10, y + 18);
    });
  }

  #drawPoint(cell) {
    const [x, y] = this.#middle(cell);
    const path = new Path2D();
    path.arc(x, y, 7, 0, 7);
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
      path.moveTo(x + 4 * dx, y + 4 * dy);
      path.lineTo(x + 11 * dx, y + 11 * dy);
    }
    this.#stroke(path);
  }

  #drawLine({ from, to, tile }) {
    const [a, b] = [from, to].map(([row, col]) => this.#middle({ row, col, tile }));
    const path = new Path2D();
    path.moveTo(...a);
    path.lineTo(...b);
    for (const [x, y] of [a, b]) {
      path.moveTo(x + 4, y);
      path.arc(x, y, 4, 0, 7);
    }
    this.#stroke(path);
  }
}
