// Exact values: stored chunks become typed arrays, and the newest of them stay in memory.

import { DAMAGED, getBytes, Refused } from "./net.js";

const BUDGET = 384 * 2 ** 20; // bytes of exact values in memory, of all outputs together
const AT_ONCE = 4; // requests for slabs of one frame

/** Values as numbers: `data[i]` itself, or `table[data[i]]` where few values exist (8 and 16 bits). */
class Values {
  constructor(data, table) {
    this.data = data;
    this.table = table;
  }

  at(index) {
    return this.table ? this.table[this.data[index]] : this.data[index];
  }
}

let halves;

function halfTable() {
  if (halves) return halves;
  halves = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    let size = exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24;
    if (exponent === 31) size = fraction ? NaN : Infinity;
    halves[bits] = bits & 32768 ? -size : size;
  }
  return halves;
}

const tables = new Map();

function scaledTable(count, scale, dtype) {
  const key = `${count} ${scale} ${dtype}`;
  if (!tables.has(key)) {
    const Numbers = dtype === "float64" ? Float64Array : Float32Array;
    tables.set(key, Numbers.from({ length: count }, (_, stored) => stored * scale));
  }
  return tables.get(key);
}

const TYPES = {
  f2: Uint16Array, f4: Float32Array, f8: Float64Array,
  i1: Int8Array, i2: Int16Array, i4: Int32Array, i8: BigInt64Array,
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, u8: BigUint64Array,
};

/** Join byte planes, all first bytes of the values and then all second bytes, into values of `size` bytes. */
function join(bytes, size) {
  const n = bytes.length / size;
  const plane = (number) => bytes.subarray(number * n, (number + 1) * n);
  if (size === 1) return bytes;
  const [a, b] = [plane(0), plane(1)];
  if (size === 2) {
    const joined = new Uint16Array(n);
    for (let i = 0; i < n; i++) joined[i] = a[i] | (b[i] << 8);
    return joined;
  }
  const joined = new Uint32Array((n * size) / 4);
  const stride = size / 4;
  for (let word = 0; word < stride; word++) {
    const [p, q, r, s] = [0, 1, 2, 3].map((number) => plane(4 * word + number));
    for (let i = 0, to = word; i < n; i++, to += stride) joined[to] = p[i] | (q[i] << 8) | (r[i] << 16) | (s[i] << 24);
  }
  return joined;
}

/** Decode the bytes of a chunk. `stored` is its dtype as NumPy writes it, for example "<f4". */
function decode(bytes, stored, layout) {
  const size = Number(stored.slice(2));
  if (stored[0] === ">" || !TYPES[stored.slice(1)]) throw new Error(`The page cannot read values stored as ${stored}.`);
  const words = layout === "planes" ? join(bytes, size) : bytes;
  const values = new TYPES[stored.slice(1)](words.buffer, words.byteOffset, words.byteLength / size);
  return /[iu]8/.test(stored) ? Float64Array.from(values, Number) : values;
}

function asValues(data, stored, scale, dtype) {
  if (stored.endsWith("f2")) return new Values(data, halfTable());
  if (scale !== null) return new Values(data, scaledTable(2 ** (8 * Number(stored.slice(2))), scale, dtype));
  return new Values(data, null);
}

/** Do `work(item)` for every item, a few at once. */
async function each(items, work) {
  const queue = [...items];
  const worker = async () => {
    while (queue.length) await work(queue.shift());
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, queue.length) }, worker));
}

/** Fetch all slabs of a chunk. A line, of which a slab holds `chunk.rows`, is a row, or a member of a batch. */
async function fetchChunk(output, field, number, signal) {
  const { chunk, rows, cols, members } = output;
  const [all, line] = members > 1 ? [members, rows * cols] : [rows, cols];
  const fetchSlab = async (slab) => {
    const bytes = await getBytes(`outputs/${output.number}/chunk/${field}/${number}/${slab}`, signal, "high");
    const part = decode(bytes, chunk.dtype, chunk.layout);
    if (part.length === chunk.frames * chunk.rows * line) return part;
    throw new Refused(DAMAGED, `The stored chunk has ${part.length} values, not ${chunk.frames * chunk.rows * line}.`);
  };
  if (chunk.slabs === 1) return fetchSlab(0);
  let whole;
  await each(Array(chunk.slabs).keys(), async (slab) => {
    const part = await fetchSlab(slab);
    whole ??= new part.constructor(chunk.frames * all * line);
    const first = slab * chunk.rows;
    const lines = Math.min(chunk.rows, all - first); // the last slab is padded
    for (let frame = 0; frame < chunk.frames; frame++) {
      const from = frame * chunk.rows * line;
      whole.set(part.subarray(from, from + lines * line), (frame * all + first) * line);
    }
  });
  return whole;
}

/** A part of a frame: `rows` × `cols` cells, each `step` cells apart, the first at (top, left). */
class Patch {
  constructor(values, offset, shape) {
    this.values = values;
    this.offset = offset; // of the first cell of member 0
    Object.assign(this, { top: 0, left: 0, step: 1, members: 1 }, shape);
  }

  get whole() {
    return this.step === 1 && this.rows === this.all[0] && this.cols === this.all[1];
  }

  /** Return [row, col, value] of the cell of this patch at or before (row, col), or null outside. */
  cell(member, row, col) {
    const [r, c] = [Math.floor((row - this.top) / this.step), Math.floor((col - this.left) / this.step)];
    if (r < 0 || c < 0 || r >= this.rows || c >= this.cols) return null;
    const index = this.offset + ((this.members > 1 ? member : 0) * this.rows + r) * this.cols + c;
    return [this.top + r * this.step, this.left + c * this.step, this.values.at(index)];
  }
}

/** The exact values in memory; the ones that were not used for longest go first. */
export class Exact {
  kept = new Map();
  bytes = 0;

  #key(output, field, number) {
    return `${output.number} ${output.group} ${field} ${number}`;
  }

  #keep(key, entry) {
    this.#drop(key);
    this.kept.set(key, entry);
    this.bytes += entry.data.byteLength;
    for (const oldest of this.kept.keys()) {
      if (this.bytes <= BUDGET || oldest === key) break;
      this.#drop(oldest);
    }
  }

  #drop(key) {
    const entry = this.kept.get(key);
    if (!entry) return;
    this.kept.delete(key);
    this.bytes -= entry.data.byteLength;
  }

  /** Return the whole frame as a Patch if it is in memory, else null. */
  peek(output, field, frame) {
    const number = Math.floor(frame / output.chunk.frames);
    const key = this.#key(output, field, number);
    const entry = this.kept.get(key);
    if (!entry || frame >= entry.committed) return null;
    this.kept.delete(key); // used last now
    this.kept.set(key, entry);
    const { rows, cols, members } = output;
    const values = asValues(entry.data, output.chunk.dtype, output.chunk.scale, output.dtype);
    const offset = (frame % output.chunk.frames) * members * rows * cols;
    return new Patch(values, offset, { frame, rows, cols, members, all: [rows, cols] });
  }

  /** Return the whole frame as a Patch, from memory or from the server. */
  async load(output, field, frame, signal) {
    const found = this.peek(output, field, frame);
    if (found) return found;
    const number = Math.floor(frame / output.chunk.frames);
    const committed = output.frames; // frames behind them may be written at this moment
    const data = await fetchChunk(output, field, number, signal);
    this.#keep(this.#key(output, field, number), { data, committed });
    return this.peek(output, field, frame);
  }

  /** Return the cells of a large grid from `top` to `bottom` and `left` to `right`, every `step`-th of them. */
  async window(output, field, member, frame, { top, bottom, left, right, step }, signal) {
    const path = `outputs/${output.number}/window/${field}/${member}/${frame}/${top}:${bottom}:${step}/${left}:${right}:${step}`;
    const bytes = await getBytes(path, signal, "high");
    const values = asValues(decode(bytes, output.kind, "values"), output.kind, null, output.dtype);
    const [rows, cols] = [Math.ceil((bottom - top) / step), Math.ceil((right - left) / step)];
    return new Patch(values, 0, { frame, top, left, step, rows, cols, all: [output.rows, output.cols] });
  }
}
