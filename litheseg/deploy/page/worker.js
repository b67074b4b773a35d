// Runs the networks beside the page, so that it stays responsive: pixels in, labels out.

import * as ort from "../ort/ort.wasm.min.mjs";
import { resizePixels } from "./resizing.js";
import { upsampleLabels } from "./upsampling.js";

const MOST_THREADS = 4;
const MOST_PIXELS = 1 << 23; // of a picture at its own size; litheseg would label a larger one tile by tile

ort.env.wasm.wasmPaths = new URL("../ort/", import.meta.url).href;
// Threads need memory that is shared, which browsers give only to sites that send two headers (see docs/targets/web.md).
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;

const sessions = new Map(); // promises, by path

/** @param {{path: string, files: object}} network  an artefact of export.json */
function open({ path, files }) {
  if (!sessions.has(path)) {
    const address = (name) => new URL(`../${name}`, import.meta.url).href;
    const beside = Object.keys(files).filter((name) => name !== path);
    const externalData = beside.map((name) => ({ path: name, data: address(name) }));
    const opened = ort.InferenceSession.create(address(path), { executionProviders: ["wasm"], externalData });
    sessions.set(path, opened);
    opened.catch(() => sessions.delete(path)); // it may be asked for again
  }
  return sessions.get(path);
}

/** Runs a network on nothing. */
async function warm({ network, size: [height, width] }) {
  const image = new ort.Tensor("uint8", new Uint8Array(3 * height * width), [1, height, width, 3]);
  const session = await open(network);
  const output = (await session.run({ image }))[session.outputNames[0]];
  output.dispose();
  return {};
}

/** @returns {Promise<{labels: Uint8Array, work: number}>}  of the picture's size; milliseconds */
async function run({ network, size, pixels, height, width }) {
  const session = await open(network);
  const started = performance.now();
  const [tall, wide] = size ?? [height, width];
  if (tall * wide > MOST_PIXELS) {
    throw new Error(`${width} x ${height} pixels are too many for a network of any size here; export one for one size`);
  }
  const ready = resizePixels(pixels, [height, width], [tall, wide]);
  const image = new ort.Tensor("uint8", ready, [1, tall, wide, 3]);
  const output = (await session.run({ image }))[session.outputNames[0]];
  const labels = upsampleLabels(output.data, output.dims.slice(1), [height, width]);
  output.dispose();
  return { labels, work: performance.now() - started };
}

self.onmessage = async ({ data: { id, task } }) => {
  try {
    const answer = task.pixels ? await run(task) : task.warm ? await warm(task) : (await open(task.network), {});
    self.postMessage({ id, answer }, answer.labels ? [answer.labels.buffer] : []);
  } catch (error) {
    self.postMessage({ id, problem: String(error?.message ?? error) });
  }
};
