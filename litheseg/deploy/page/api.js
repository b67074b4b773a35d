// In the place of a server: the networks beside the page, run in this browser. What the page asks for is the same.

import { encodeMask } from "./mask_png.js";

// A WebAssembly module of one function that uses a vector: what the runtime is made of.
const VECTORS = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];

export class Refusal extends Error {}

export function setKey() {}

const ISOLATED = "litheseg-isolated"; // what keeps a page that stays without threads from loading again for ever
const WAITING = 500; // milliseconds: a picture that was chosen before the networks were there goes first
const BLANK = [256, 256]; // pixels, where a network takes any size

let model = null;
let worker = null;
const pending = new Map(); // what waits for the worker's answer, by number
const decoded = new WeakMap(); // promises of pixels, by picture

export async function getJson(path) {
  if (path === "/v1/model") return (model ??= await openModel());
  return { ready: true, waiting: 0, width: null };
}

export async function getBlob() {
  throw new Error("There is no server to ask.");
}

/** As the server's page does it, but for what is sent: nothing. See there. */
export async function segment(image, { width, int8 = false, signal }) {
  const network = find(width, int8);
  if (!decoded.has(image)) decoded.set(image, pixelsOf(image));
  const picture = await decoded.get(image);
  const started = performance.now();
  const { labels, work } = await ask({ network, size: network.size ?? model.size, ...picture });
  signal?.throwIfAborted();
  const roundTrip = performance.now() - started;
  const mask = { width: picture.width, height: picture.height, indices: labels };
  const png = () => encodeMask(mask, model.classes);
  return { mask, png, width: network.width, work, queue: Math.max(0, roundTrip - work), roundTrip };
}

async function openModel() {
  if (!globalThis.WebAssembly?.validate(new Uint8Array(VECTORS))) {
    throw new Error(
      "This browser has no WebAssembly with vector instructions (SIMD), which the networks need. Update it, or use " +
        "Chrome or Edge 91, Firefox 89, Safari 16.4 or later.",
    );
  }
  await isolate();
  const [about, { artefacts }] = await Promise.all(["page/model.json", "export.json"].map(fetchJson));
  const networks = artefacts.filter(({ format }) => format === "onnx").sort((a, b) => b.width - a.width);
  const widths = [...new Set(networks.map(({ width }) => width))];
  const int8 = widths.every((width) => networks.some((one) => one.width === width && one.precision === "int8"));
  const unknown = { p50_ms: null, clients: null, images_per_second: null }; // what a server would have measured
  start();
  await ask({ network: networks[0] });
  setTimeout(() => warmUp([...networks].reverse()).catch(() => {}), WAITING); // failures are said when it is wanted
  return { ...about, networks, int8, widths: widths.map((width) => ({ width, ...unknown, ...about.scores[width] })) };
}

/** Loads the page again by way of a worker that sends what threads need; where that is not possible, one computes. */
async function isolate() {
  if (globalThis.crossOriginIsolated || !navigator.serviceWorker || sessionStorage.getItem(ISOLATED)) return;
  try {
    const there = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve));
    await navigator.serviceWorker.register("isolation.js");
    if (!navigator.serviceWorker.controller) await there;
  } catch {
    return; // some browsers refuse it in private windows
  }
  sessionStorage.setItem(ISOLATED, "tried");
  location.reload();
  await new Promise(() => {}); // until this page is gone
}

/** Opens all networks and runs each once, the fastest first: code that has run is compiled better by then. */
async function warmUp(networks) {
  for (const network of networks) await ask({ network, size: network.size ?? model?.size ?? BLANK, warm: true });
}

async function fetchJson(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path} is not beside this page (${response.status}). Copy the folder whole.`);
  return response.json();
}

function find(width, int8) {
  const fitting = model.networks.filter((one) => one.width === width);
  return fitting.find(({ precision }) => (precision === "int8") === int8) ?? fitting[0];
}

// ---------------------------------------------------------------- the worker

function start() {
  worker?.terminate();
  worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data: { id, answer, problem } }) => {
    const { resolve, reject } = pending.get(id);
    pending.delete(id);
    if (problem === undefined) resolve(answer);
    else reject(new Error(problem));
  };
  worker.onerror = () => {
    for (const { reject } of pending.values()) {
      reject(new Error("The runtime cannot be loaded: the folder's ort/ must lie beside this page, complete."));
    }
    pending.clear();
  };
}

let count = 0;

function ask(task) {
  return new Promise((resolve, reject) => {
    pending.set(++count, { resolve, reject });
    worker.postMessage({ id: count, task });
  });
}

/** The pixels as they are stored: no colour management, nothing blended; upright. */
async function pixelsOf(image) {
  const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { pixels: context.getImageData(0, 0, width, height).data, width, height };
}
