// The resize of pictures to what a network takes, bilinear and antialiased: `litheseg.masks.resizing`, which explains
// it, in JavaScript. All sums are of integers, so the result is the same in every bit.

/**
 * @param {Uint8ClampedArray} rgba  H x W x 4, as a canvas gives it
 * @param {[number, number]} from  H and W
 * @param {[number, number]} to  h and w
 * @returns {Uint8Array}  h x w x 3
 */
export function resizePixels(rgba, [tall, wide], [height, width]) {
  const rgb = new Uint8Array(3 * tall * wide);
  for (let k = 0, at = 0; at < rgba.length; k += 3, at += 4) {
    rgb[k] = rgba[at];
    rgb[k + 1] = rgba[at + 1];
    rgb[k + 2] = rgba[at + 2];
  }
  const narrow = wide === width ? rgb : mixColumns(rgb, tall, wide, trianglesOf(wide, width));
  return tall === height ? narrow : mixRows(narrow, width, tall, trianglesOf(tall, height));
}

/** How the pixels of an axis are weighted means of the `old` ones: weights in units of 1 / 2 ** precision. */
function trianglesOf(old, now) {
  const scale = old / now;
  const support = Math.max(scale, 1);
  const centres = Float64Array.from({ length: now }, (_, k) => scale * (k + 0.5));
  const starts = Int32Array.from(centres, (centre) => Math.max(Math.trunc(centre - support + 0.5), 0));
  const ends = Int32Array.from(centres, (centre) => Math.min(Math.trunc(centre + support + 0.5), old));
  const longest = starts.reduce((most, start, k) => Math.max(most, ends[k] - start), 0);
  const taps = Math.min(longest, 2 * Math.ceil(support) + 1);
  const exact = new Float64Array(now * taps);
  for (let k = 0; k < now; k++) {
    const [first, end] = [starts[k], Math.min(ends[k], starts[k] + taps)];
    starts[k] = Math.min(first, old - taps);
    let total = 0;
    for (let tap = 0; tap < taps; tap++) {
      const pixel = starts[k] + tap;
      const inside = pixel >= first && pixel < end;
      const weight = inside ? Math.max(1 - Math.abs((pixel - centres[k] + 0.5) * (1 / support)), 0) : 0;
      exact[k * taps + tap] = weight;
      total += weight;
    }
    for (let tap = 0; tap < taps; tap++) exact[k * taps + tap] /= total;
  }
  const largest = exact.reduce((most, weight) => Math.max(most, weight), 0);
  let precision = 0;
  while (precision < 22 && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < 2 ** 15) precision++;
  const weights = Int32Array.from(exact, (weight) => Math.trunc(0.5 + weight * 2 ** precision));
  return { starts, weights, taps, precision, pixels: now };
}

function mixColumns(rgb, tall, wide, { starts, weights, taps, precision, pixels }) {
  const result = new Uint8Array(3 * tall * pixels);
  const half = 1 << (precision - 1);
  for (let y = 0, to = 0; y < tall; y++) {
    for (let x = 0; x < pixels; x++, to += 3) {
      let [red, green, blue] = [half, half, half];
      for (let tap = 0, from = 3 * (y * wide + starts[x]); tap < taps; tap++, from += 3) {
        const weight = weights[x * taps + tap];
        red += weight * rgb[from];
        green += weight * rgb[from + 1];
        blue += weight * rgb[from + 2];
      }
      result[to] = Math.min(red >> precision, 255);
      result[to + 1] = Math.min(green >> precision, 255);
      result[to + 2] = Math.min(blue >> precision, 255);
    }
  }
  return result;
}

function mixRows(rgb, wide, tall, { starts, weights, taps, precision, pixels }) {
  const line = 3 * wide;
  const result = new Uint8Array(pixels * line);
  const sums = new Int32Array(line);
  for (let y = 0; y < pixels; y++) {
    sums.fill(1 << (precision - 1));
    for (let tap = 0; tap < taps; tap++) {
      const [weight, from] = [weights[y * taps + tap], (starts[y] + tap) * line];
      if (weight) for (let k = 0; k < line; k++) sums[k] += weight * rgb[from + k];
    }
    for (let k = 0; k < line; k++) result[y * line + k] = Math.min(sums[k] >> precision, 255);
  }
  return result;
}
