// Decodes the masks that the server sends: 8-bit palette PNGs. A canvas would give colours, which two classes may share
// and which privacy settings may blur; here the pixels stay what they are, class indices.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/**
 * @param {ArrayBuffer} buffer
 * @returns {Promise<{width: number, height: number, indices: Uint8Array}>}
 */
export async function decodeMask(buffer) {
  const bytes = new Uint8Array(buffer);
  if (!SIGNATURE.every((value, k) => bytes[k] === value)) throw new Error("the mask is no PNG");
  const { width, height, data } = chunks(new DataView(buffer), bytes);
  const raw = await inflate(data);
  return { width, height, indices: unfilter(raw, width, height) };
}

function chunks(view, bytes) {
  let width = 0;
  let height = 0;
  const data = [];
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (type === "IHDR") {
      width = view.getUint32(at + 8);
      height = view.getUint32(at + 12);
      const [depth, color, , , interlace] = bytes.subarray(at + 16, at + 21);
      if (depth !== 8 || color !== 3 || interlace !== 0) throw new Error("the mask is no plain 8-bit palette PNG");
    }
    if (type === "IDAT") data.push(bytes.subarray(at + 8, at + 8 + length));
    at += length + 12;
  }
  return { width, height, data };
}

async function inflate(parts) {
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Undoes PNG's row filters for pixels of one byte (PNG specification, section 9). */
function unfilter(raw, width, height) {
  const pixels = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const filter = raw[y * (width + 1)];
    const from = y * (width + 1) + 1;
    const to = y * width;
    for (let x = 0; x < width; x++) {
      const left = x ? pixels[to + x - 1] : 0;
      const up = y ? pixels[to + x - width] : 0;
      const corner = x && y ? pixels[to + x - width - 1] : 0;
      pixels[to + x] = raw[from + x] + predicted(filter, left, up, corner);
    }
  }
  return pixels;
}

function predicted(filter, left, up, corner) {
  if (filter === 0) return 0;
  if (filter === 1) return left;
  if (filter === 2) return up;
  if (filter === 3) return (left + up) >> 1;
  const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? up : corner;
}
