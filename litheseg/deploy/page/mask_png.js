// Masks as files: 8-bit palette PNGs whose pixels are class indices, as litheseg writes them.

/**
 * @param {{width: number, height: number, indices: Uint8Array}} mask
 * @param {{color: string}[]} classes
 * @returns {Promise<ArrayBuffer>}
 */
export async function encodeMask({ width, height, indices }, classes) {
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header.set([8, 3, 0, 0, 0], 8); // bits, palette, the one way to compress and to filter, not interlaced
  const palette = new Uint8Array(3 * classes.length);
  classes.forEach(({ color }, k) => palette.set([1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16)), 3 * k));
  const rows = new Uint8Array(height * (width + 1)); // each after a 0: no filter
  for (let y = 0; y < height; y++) rows.set(indices.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(deflated).arrayBuffer());
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  const chunks = [["IHDR", header], ["PLTE", palette], ["IDAT", data], ["IEND", new Uint8Array()]];
  return new Blob([signature, ...chunks.map(([kind, content]) => chunk(kind, content))]).arrayBuffer();
}

function chunk(kind, content) {
  const bytes = new Uint8Array(content.length + 12);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set([...kind].map((letter) => letter.charCodeAt(0)), 4);
  bytes.set(content, 8);
  view.setUint32(content.length + 8, checksum(bytes.subarray(4, content.length + 8)));
  return bytes;
}

/** CRC-32 (PNG specification, annex D). */
function checksum(bytes) {
  let sum = -1;
  for (const byte of bytes) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
  }
  return (sum ^ -1) >>> 0;
}
