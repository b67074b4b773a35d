// What went wrong, in words, and how the server is.

import { Refusal } from "./api.js";

const $ = (id) => document.getElementById(id);

let unauthorised = () => {};

/** What to do when the server wants a key. */
export function onUnauthorised(handler) {
  unauthorised = handler;
}

/**
 * Shows an error until the next success.
 *
 * @param {Error} error
 * @param {(() => void) | null} again  what a press on "Try again" does, where that can help
 */
export async function explain(error, again = null) {
  if (error?.name === "AbortError") return;
  if (error instanceof Refusal && error.status === 401) {
    await unauthorised();
    return;
  }
  const away = error instanceof TypeError;
  $("notice-text").textContent = away
    ? "The server cannot be reached. Is it still running?"
    : sentence(error.message);
  $("notice").hidden = false;
  const useful = again && (away || error.status >= 500);
  $("notice-action").hidden = !useful;
  $("notice-action").onclick = useful ? () => (quiet(), again()) : null;
  if (away) setServer("away", "Not reachable");
}

export function quiet() {
  $("notice").hidden = true;
}

/** @param {"ready" | "busy" | "away"} name */
export function setServer(name, text) {
  $("server").dataset.state = name;
  $("server-text").textContent = text;
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.?!]$/.test(trimmed) ? "" : ".");
}

$("notice-close").addEventListener("click", quiet);
