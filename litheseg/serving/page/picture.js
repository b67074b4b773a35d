// Pictures: what the person gave, what is sent of it, and how a mask is laid over it.

const LONGEST = 1280; // pixels; a larger picture is sent smaller
const AS_THEY_ARE = ["image/jpeg", "image/png"];

/**
 * @param {Blob} file
 * @param {string} name
 * @returns {Promise<{bitmap: ImageBitmap, blob: Blob, name: string, whole: () => Promise<Blob | null>}>}  bitmap and
 *     blob have the same size, upright; `whole` gives the picture at its own size, null where the blob is that
 */
export async function readPicture(file, name) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`This browser cannot show ${name} as a picture. Try a JPEG or PNG.`);
  }
  if (Math.max(bitmap.width, bitmap.height) <= LONGEST && AS_THEY_ARE.includes(file.type)) {
    return { bitmap, blob: file, name, whole: async () => null };
  }
  const still = (longest, quality) => grab(bitmap, bitmap.width, bitmap.height, longest, quality);
  const whole = async () => (AS_THEY_ARE.includes(file.type) ? file : (await still(Infinity, 0.95)).blob);
  return { ...(await still(LONGEST)), name, whole };
}

/** A still of anything that can be drawn, at most `longest` pixels a side. */
export async function grab(source, width, height, longest, quality = 0.92) {
  const scale = Math.min(1, longest / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", quality));
  return { bitmap: await createImageBitmap(canvas), blob };
}

/**
 * Draws the picture, and over it the colours of those classes that are shown.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} bitmap
 * @param {{width: number, height: number, indices: Uint8Array} | null} mask
 * @param {Uint32Array} colors  256 colours as they lie in memory, 0 for what is not shown
 */
export function paint(canvas, bitmap, mask, colors) {
  if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
  }
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  if (!mask) return;
  const layer = new OffscreenCanvas(mask.width, mask.height);
  const image = new ImageData(mask.width, mask.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let k = 0; k < pixels.length; k++) pixels[k] = colors[mask.indices[k]];
  layer.getContext("2d").putImageData(image, 0, 0);
  context.drawImage(layer, 0, 0, canvas.width, canvas.height);
}

/**
 * @param {{color: string}[]} classes
 * @param {(index: number) => number} alpha  of a class, in [0, 1]
 */
export function colorTable(classes, alpha) {
  const bytes = new Uint8ClampedArray(256 * 4);
  classes.forEach(({ color }, k) => {
    const value = parseInt(color.slice(1), 16);
    bytes.set([value >> 16, (value >> 8) & 255, value & 255, Math.round(255 * alpha(k))], 4 * k);
  });
  return new Uint32Array(bytes.buffer);
}

/** Share of each class among the pixels. */
export function shares(mask, count) {
  const sums = new Array(count).fill(0);
  for (const index of mask.indices) sums[index]++;
  return sums.map((sum) => sum / mask.indices.length);
}

/** Share of the pixels in which two masks of one picture differ. */
export function difference(one, other) {
  let sum = 0;
  for (let k = 0; k < one.indices.length; k++) sum += one.indices[k] !== other.indices[k];
  return sum / one.indices.length;
}
