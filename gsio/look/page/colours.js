// Colour maps as tables of 256 pixels, and the painting of values with them.

import { getJson } from "./net.js";

const maps = new Map(); // name → Uint32Array [256] of ABGR, as ImageData holds pixels
export let defaultMap = "";

export async function loadMaps() {
  const { default: name, maps: encoded } = await getJson("colours");
  defaultMap = name;
  for (const [key, text] of Object.entries(encoded)) {
    const rgb = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    maps.set(key, Uint32Array.from({ length: 256 }, (_, i) =>
      (255 << 24 | rgb[3 * i + 2] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i]) >>> 0));
  }
}

export function mapNames() {
  return [...maps.keys()];
}

function palette(name) {
  return maps.get(name) ?? maps.get(defaultMap);
}

function css(pixel) {
  return `rgb(${pixel & 255} ${(pixel >> 8) & 255} ${(pixel >> 16) & 255})`;
}

export function colourOf(value, [low, high], name) {
  return css(palette(name)[place(value, low, 256 / (high - low))]);
}

/** Return a CSS gradient of a map, towards "right" or "top". */
export function gradient(name, towards = "right") {
  const colours = palette(name);
  const stops = Array.from({ length: 33 }, (_, i) => css(colours[Math.min(255, i * 8)]));
  return `linear-gradient(to ${towards}, ${stops.join(", ")})`;
}

function place(value, low, factor) {
  const at = (value - low) * factor;
  return at >= 255 ? 255 : at > 0 ? at | 0 : 0; // what is not a number gets the first colour
}

/** Paint `pixels.length` values from `offset` on. */
export function paint(values, offset, [low, high], name, pixels) {
  const colours = palette(name);
  const factor = 256 / (high - low);
  const { data, table } = values;
  const n = pixels.length;
  if (table) {
    const painted = Uint32Array.from(table, (value) => colours[place(value, low, factor)]);
    for (let i = 0; i < n; i++) pixels[i] = painted[data[offset + i]];
    return;
  }
  for (let i = 0; i < n; i++) {
    const at = (data[offset + i] - low) * factor;
    pixels[i] = colours[at >= 255 ? 255 : at > 0 ? at | 0 : 0];
  }
}

/** Paint a proxy: bytes whose 0 and 255 stand for the frame's own range. */
export function paintProxy(proxy, [low, high], name, pixels) {
  const colours = palette(name);
  const factor = 256 / (high - low);
  const painted = new Uint32Array(256);
  for (let q = 0; q < 256; q++) painted[q] = colours[place(proxy.low + (q / 255) * (proxy.high - proxy.low), low, factor)];
  const { bytes } = proxy;
  for (let i = 0; i < bytes.length; i++) pixels[i] = painted[bytes[i]];
}
