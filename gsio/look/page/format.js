// Numbers and times as people read them.

function half(value) {
  const exponent = Math.max(-14, Math.floor(Math.log2(Math.abs(value) || 1)));
  const unit = 2 ** (exponent - 10);
  return Math.round(value / unit) * unit;
}

const ROUNDING = { float16: [5, half], float32: [9, Math.fround], float64: [17, Number] };

/** Return the shortest decimal that gives the same value back when it is read as `dtype`. */
export function shortest(value, dtype) {
  if (Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "infinite" : "−infinite";
  const [digits, round] = ROUNDING[dtype] ?? ROUNDING.float64;
  for (let precision = 1; precision < digits; precision++) {
    const short = Number(value.toPrecision(precision));
    if (round(short) === value) return String(short).replace("-", "−");
  }
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** Return a number for a label, with about four digits. */
export function brief(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-4) return Number(value.toPrecision(3)).toExponential().replace("e+", "e").replaceAll("-", "−");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US").replaceAll(",", "\u202f").replace("-", "−");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

/** Return a duration in seconds in words. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${brief(seconds / 3600, 2)} h`;
  return `${brief(seconds / 86400, 2)} days`;
}

/** Return a count of whole things with thin spaces between thousands. */
export function count(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** Return the value of a key of the configuration: a number or a word. */
export function word(value) {
  return typeof value !== "number" ? String(value) : Number.isInteger(value) ? count(value) : brief(value, 6);
}

/** Return at least `wanted` round numbers from low to high where float64 has them, for the ticks of a scale. */
export function ticks(low, high, wanted = 3) {
  const rough = (high - low) / (wanted - 1);
  if (!(rough > 0) || !Number.isFinite(rough)) return [low];
  const unit = 10 ** Math.floor(Math.log10(rough));
  const within = (step) => {
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(at * step);
    return found.map((value) => Number(value.toPrecision(12)));
  };
  const steps = [10, 5, 2, 1, 0.5, 0.2].map((factor) => within(factor * unit));
  return steps.find((found) => found.length >= wanted) ?? steps.at(-1);
}
