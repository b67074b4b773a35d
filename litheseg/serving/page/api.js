// Talks to the server. Refusals become `Refusal`s that carry the server's own words; a busy server is asked again.

import { decodeMask } from "./png.js";

const RETRIES = 4;

export class Refusal extends Error {
  constructor(status, code, detail, retryAfter) {
    super(detail);
    Object.assign(this, { status, code, retryAfter });
  }
}

let key = sessionStorage.getItem("litheseg-key") ?? "";

export function setKey(value) {
  key = value;
  sessionStorage.setItem("litheseg-key", value);
}

export async function getJson(path, signal) {
  return (await send(path, { signal })).json();
}

export async function getBlob(path, signal) {
  return (await send(path, { signal })).blob();
}

/**
 * Segments an image.
 *
 * @param {Blob} image
 * @param {{width: number | null, signal: AbortSignal}} options  width null: what the load allows
 * @returns {Promise<{mask: {width: number, height: number, indices: Uint8Array}, png: () => Promise<ArrayBuffer>,
 *     width: number, work: number, queue: number, roundTrip: number}>}  milliseconds
 */
export async function segment(image, { width, signal }) {
  const query = width === null ? "" : `?width=${width}`;
  for (let turn = 0; ; turn++) {
    const body = new FormData();
    body.append("image", image, "image");
    const started = performance.now();
    try {
      const response = await send(`/v1/segment/mask${query}`, { method: "POST", body, signal });
      const png = await response.arrayBuffer();
      const number = (name) => Number(response.headers.get(`Litheseg-${name}`));
      const roundTrip = performance.now() - started;
      return {
        mask: await decodeMask(png),
        png: async () => png,
        width: number("Width"),
        work: number("Milliseconds"),
        queue: number("Queue-Milliseconds"),
        roundTrip,
      };
    } catch (error) {
      if (!(error instanceof Refusal && error.status === 503 && turn < RETRIES)) throw error;
      await pause(1000 * error.retryAfter, signal);
    }
  }
}

async function send(path, options) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  const code = String(problem.type ?? "").split(":").pop();
  const detail = problem.detail ?? `The server answered ${response.status}.`;
  throw new Refusal(response.status, code, detail, Number(response.headers.get("Retry-After") ?? 1));
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
