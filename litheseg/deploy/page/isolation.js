// Sends, in the place of the host, the two headers without which browsers share no memory between threads: a service
// worker, so every file below this folder passes through here. The idea is that of coi-serviceworker (Guido Zuidhof).

const HEADERS = { "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp" };

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => event.respondWith(answer(event.request)));

async function answer(request) {
  const { body, status, statusText, headers } = await fetch(request);
  return new Response(body, { status, statusText, headers: { ...Object.fromEntries(headers), ...HEADERS } });
}
