"use strict";
// Reads the packed maps (quanta.py says how they are packed), draws them, and tells the number below the pointer or the
// keyboard's cursor. Text gets into the page by textContent alone.

function bytesOf(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let at = 0; at < raw.length; at++) bytes[at] = raw.charCodeAt(at);
  return bytes;
}

// The scales of rows: the upper 16 bits of float32.
function scalesOf(bytes, from, count) {
  const bits = new Uint32Array(count);
  for (let row = 0; row < count; row++) bits[row] = (bytes[from + 2 * row] | (bytes[from + 2 * row + 1] << 8)) << 16;
  return new Float32Array(bits.buffer);
}

function signedByte(byte, signed) { return signed && byte > 127 ? byte - 256 : byte; }

// Map `number` of those packed one after the other: at(i, j) tells {value, half} of a cell, or that it is not seen.
function openMap(bytes, number, T, S, causal, signed) {
  const cells = causal ? T * (T + 1) / 2 : T * S, from = number * (2 * T + cells);
  const scales = scalesOf(bytes, from, T), levels = signed ? 127 : 255;
  return {
    T, S, signed, at(i, j) {
      if (causal && j > i) return {value: 0, unseen: true};
      const byte = bytes[from + 2 * T + (causal ? i * (i + 1) / 2 + j : i * S + j)], quantum = scales[i] / levels;
      return {value: signedByte(byte, signed) * quantum, half: quantum / 2};
    },
  };
}

// The largest cells of each row; of others it is known that they are no larger than the smallest of these.
function openLargest(bytes, T, S, k, causal, signed) {
  const scales = scalesOf(bytes, 0, T), levels = signed ? 127 : 255, places = 2 * T, cells = 2 * T + 2 * T * k;
  const rows = [];
  for (let i = 0; i < T; i++) {
    const row = new Map();
    for (let one = 0; one < k; one++) {
      const at = places + 2 * (i * k + one);
      row.set(bytes[at] | (bytes[at + 1] << 8), signedByte(bytes[cells + i * k + one], signed) * scales[i] / levels);
    }
    rows.push(row);
  }
  return {
    T, S, signed, at(i, j) {
      if (causal && j > i) return {value: 0, unseen: true};
      const half = scales[i] / levels / 2, values = rows[i];
      if (values.has(j)) return {value: values.get(j), half};
      const least = Math.abs([...values.values()].pop());
      return {value: 0, half: least + half};
    },
  };
}

// A number to half a quantum; what is below that is only known to be.
function told(cell) {
  if (cell.unseen) return "not seen";
  if (cell.half === 0) return "0";
  if (cell.value === 0) return "below " + cell.half.toPrecision(2);
  const digits = Math.max(0, Math.min(12, 1 - Math.floor(Math.log10(cell.half))));
  return cell.value.toFixed(digits) + " ± " + cell.half.toPrecision(1);
}
