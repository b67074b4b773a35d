// The page: what the person does, what is asked of the server, and what is shown of its answers.

import { getBlob, getJson, segment, setKey } from "./api.js";
import { Chart } from "./chart.js";
import { makeDivider } from "./divider.js";
import { Legend, percent } from "./legend.js";
import { explain, onUnauthorised, quiet, setServer } from "./notice.js";
import { colorTable, difference, grab, paint, readPicture, shares } from "./picture.js";

const DEBOUNCE = 70; // milliseconds
const STATUS_EVERY = 4000;
const CAMERA_LONGEST = 640; // pixels
const SIDES = ["left", "right"];

const $ = (id) => document.getElementById(id);
const chart = new Chart($("chart"));
const legend = new Legend($("legend"), draw);

const state = {
  model: null,
  widths: [], // narrowest first, as the sliders go
  picture: null, // {bitmap, blob, name}
  stream: null, // the camera's
  opacity: 0.6,
  compare: false,
  auto: false,
  answers: new Map(), // of this picture, by width
  shown: { left: null, right: null }, // answers
  pending: { left: null, right: null }, // abort controllers of requests under way
  street: Math.floor(Math.random() * 1e6),
};

// ---------------------------------------------------------------- the model

async function start() {
  try {
    state.model = await getJson("/v1/model");
  } catch (error) {
    await explain(error, start);
    return;
  } finally {
    $("stuck").hidden = true;
  }
  const { name, classes, widths, version, runtime, example } = state.model;
  state.widths = widths.map((entry) => entry.width).sort((a, b) => a - b);
  document.title = `${name} · litheseg`;
  $("model").textContent = `${name} · ${classes.length} classes`;
  $("version").textContent = `litheseg ${version} · ${runtime}`;
  $("example").hidden = !example;
  $("int8-switch").hidden = !state.model.int8;
  legend.fill(classes);
  makeDial("left", state.widths.length - 1);
  makeDial("right", 0);
  $("compare").disabled = $("auto").disabled = state.widths.length < 2;
  quiet();
}

function askForKey() {
  return new Promise((resolve) => {
    $("key-dialog").addEventListener("close", () => resolve(setKey($("key").value.trim())), { once: true });
    $("key-dialog").showModal();
  }).then(start);
}

function makeDial(side, index) {
  const input = $(`width-${side}`);
  input.max = state.widths.length - 1;
  input.value = index;
  const ticks = $(`dial-${side}`).querySelector(".ticks");
  const last = Math.max(1, state.widths.length - 1);
  ticks.replaceChildren(
    ...state.widths.map((width, k) => {
      const tick = document.createElement("span");
      tick.textContent = String(width).replace(/^0/, "");
      tick.style.left = `${(100 * k) / last}%`;
      return tick;
    }),
  );
  showDial(side);
}

// ---------------------------------------------------------------- pictures

async function take(file, name) {
  stopCamera();
  await loaded;
  if (!state.model) return; // what is wrong is shown already
  try {
    show(await readPicture(file, name));
  } catch (error) {
    explain(error);
    return;
  }
  ask("left");
  if (state.compare) ask("right");
}

function show(picture) {
  const { bitmap, blob, name } = picture;
  state.picture = picture;
  state.answers.clear();
  state.shown = { left: null, right: null };
  $("empty").hidden = true;
  $("viewer").hidden = false;
  $("viewer").style.setProperty("--ratio", bitmap.width / bitmap.height);
  const sent = state.model.local ? "" : ` · ${Math.max(1, Math.round(blob.size / 1000))} kB sent`;
  $("source-text").textContent = `${name} · ${bitmap.width} × ${bitmap.height}${sent}`;
  $("save").hidden = true;
  draw();
}

async function drawStreet() {
  try {
    const seed = state.street++;
    await take(await getBlob(`/v1/example?seed=${seed}`), `street ${seed}`);
  } catch (error) {
    explain(error, drawStreet);
  }
}

// ---------------------------------------------------------------- asking

function wanted(side) {
  return side === "left" && state.auto ? null : state.widths[$(`width-${side}`).value];
}

const debounced = { left: 0, right: 0 };

function askSoon(side) {
  clearTimeout(debounced[side]);
  const known = state.answers.get(wanted(side));
  if (known) {
    cancel(side);
    accept(side, known);
  } else {
    debounced[side] = setTimeout(() => ask(side), state.pending[side] ? DEBOUNCE : 0); // dragged across, widths are left out
  }
}

async function ask(side) {
  const { picture } = state;
  if (!picture) return;
  const answer = await answered(side, picture);
  if (!answer) return;
  state.answers.set(answer.width, answer);
  accept(side, answer);
}

/** The answer for a picture, or null if it came too late, failed, or is no longer needed. */
async function answered(side, picture) {
  cancel(side);
  const mine = new AbortController();
  state.pending[side] = mine;
  $("viewer").classList.add("waiting");
  try {
    const answer = await segment(picture.blob, { width: wanted(side), int8: $("int8").checked, signal: mine.signal });
    if (state.pending[side] !== mine) return null;
    chart.add({ ...answer, side });
    quiet();
    return answer;
  } catch (error) {
    if (state.pending[side] === mine) explain(error, () => ask(side));
    return null;
  } finally {
    if (state.pending[side] === mine) state.pending[side] = null;
    $("viewer").classList.toggle("waiting", SIDES.some((other) => state.pending[other]));
  }
}

function cancel(side) {
  state.pending[side]?.abort();
  state.pending[side] = null;
}

function accept(side, answer) {
  state.shown[side] = answer;
  if (side === "left" && state.auto) $("width-left").value = state.widths.indexOf(answer.width);
  showDial(side);
  draw();
  showShares();
  showTime(answer);
  if (side === "left" && !state.stream) $("save").hidden = !state.picture.whole;
}

// ---------------------------------------------------------------- showing

function draw() {
  if (!state.picture) return;
  const colors = colorTable(state.model.classes, (k) => legend.alpha(k, state.opacity));
  for (const side of state.compare ? SIDES : ["left"]) {
    paint($(side), state.picture.bitmap, state.shown[side]?.mask ?? null, colors);
  }
}

function showDial(side) {
  const index = Number($(`width-${side}`).value);
  const width = state.widths[index];
  const answer = state.shown[side];
  const facts = state.model.widths.find((entry) => entry.width === width);
  const fits = answer?.width === width;
  const ms = fits ? `${answer.work.toFixed(answer.work < 10 ? 1 : 0)} ms` : `about ${facts.p50_ms?.toFixed(0) ?? "–"} ms`;
  $(`figure-${side}`).textContent = width.toFixed(2);
  $(`ms-${side}`).textContent = ms;
  const worst = facts.worst_class === null ? "" : `, ${facts.worst_class} ${(100 * facts.worst_iou).toFixed(1)} %`;
  $(`miou-${side}`).textContent = facts.miou === null ? "" : `${(100 * facts.miou).toFixed(1)} % mIoU${worst}`;
  $(`badge-${side}`).textContent = fits ? `${width.toFixed(2)} · ${ms}` : "";
  if (side === "left") $("holds").textContent = held(facts);
  $(`width-${side}`).setAttribute("aria-valuetext", `${width}, ${ms}`);
  const last = Math.max(1, state.widths.length - 1);
  $(`dial-${side}`).style.setProperty("--fill", `${(100 * index) / last}%`);
}

/** What the server can hold at a width, as it was measured when it started. */
function held({ clients, images_per_second: rate }) {
  const target = `${state.model.target_ms} ms`;
  if (clients === null) return "";
  if (clients === 0) return `Takes longer than the ${target} that answers should take.`;
  return `${clients} ${clients === 1 ? "client" : "clients"} at once within ${target}: ${rate.toFixed(0)} images a second.`;
}

function showShares() {
  const { left, right } = state.shown;
  if (left) {
    const parts = shares(left.mask, state.model.classes.length);
    legend.showShares(parts);
    const largest = parts.map((part, k) => [part, state.model.classes[k].name]).sort((a, b) => b[0] - a[0]).slice(0, 3);
    const described = largest.filter(([part]) => part).map(([part, name]) => `${name} ${percent(part)}`).join(", ");
    $("left").setAttribute("aria-label", `The picture with its classes: ${described}`);
    if (!state.stream) $("said").textContent = `Width ${left.width}, ${left.work.toFixed(0)} milliseconds: ${described}`;
  }
  const both = state.compare && left && right && left.mask.indices.length === right.mask.indices.length;
  $("difference").textContent = both ? `The two differ in ${percent(difference(left.mask, right.mask))} of the pixels.` : "";
}

function showTime({ work, queue, roundTrip }) {
  const rate = state.stream ? ` · ${(1000 / roundTrip).toFixed(0)} a second` : ` · ${roundTrip.toFixed(0)} round trip`;
  const waited = queue >= 1 ? ` + ${queue.toFixed(0)} waiting` : "";
  $("time-now").textContent = `${work.toFixed(0)} ms${waited}${rate}`;
}

/** The mask at the picture's own size: a large picture was sent smaller, so it is asked for anew. */
async function saveMask() {
  const { picture, shown: { left: answer } } = state;
  $("viewer").classList.add("waiting");
  try {
    const whole = await picture.whole();
    const { png } = whole ? await segment(whole, { width: answer.width, int8: $("int8").checked }) : answer;
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([await png()], { type: "image/png" }));
    link.download = `${picture.name.replace(/\.[^.]*$/, "")}-${answer.width}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    explain(error, saveMask);
  } finally {
    $("viewer").classList.remove("waiting");
  }
}

// ---------------------------------------------------------------- the load

async function watch() {
  if (!document.hidden && state.model) {
    try {
      const { ready, waiting, width } = await getJson("/v1/status");
      setServer(waiting || !ready ? "busy" : "ready", !ready ? "Not ready" : waiting ? `${waiting} waiting` : "Ready");
      $("auto-now").textContent = state.widths.length > 1 ? `, now ${width}` : "";
    } catch {
      setServer("away", "Not reachable");
    }
  }
  setTimeout(watch, STATUS_EVERY);
}

// ---------------------------------------------------------------- camera

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    explain(new Error("Browsers allow the camera on this machine (localhost) or over HTTPS only."));
    return;
  }
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: CAMERA_LONGEST } },
    });
  } catch {
    explain(new Error("The camera cannot be used: allow it in the browser, or connect one."));
    return;
  }
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Stop camera";
  runCamera(state.stream);
}

function stopCamera() {
  if (!state.stream) return;
  for (const track of state.stream.getTracks()) track.stop();
  state.stream = null;
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Camera";
}

/** One frame after the other, as fast as the server answers; the last one stays when the camera stops. */
async function runCamera(stream) {
  const video = document.createElement("video");
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  for (let first = true; state.stream === stream; first = false) {
    const frame = await grab(video, video.videoWidth, video.videoHeight, CAMERA_LONGEST, 0.85);
    const picture = { ...frame, name: "camera" };
    if (first) show(picture);
    const sides = state.compare ? SIDES : ["left"];
    const answers = await Promise.all(sides.map((side) => answered(side, picture)));
    if (state.stream !== stream) return;
    if (answers.some((answer) => !answer)) {
      await new Promise((resolve) => setTimeout(resolve, $("notice").hidden ? 0 : 1000));
      continue;
    }
    state.picture = picture;
    state.answers.clear();
    sides.forEach((side, k) => accept(side, answers[k]));
  }
}

// ---------------------------------------------------------------- what the person does

function connect() {
  $("choose").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) take(target.files[0], target.files[0].name);
    target.value = ""; // the same file may be chosen again
  });
  $("camera").addEventListener("click", () => (state.stream ? stopCamera() : startCamera()));
  $("example").addEventListener("click", drawStreet);
  $("save").addEventListener("click", saveMask);
  for (const side of SIDES) {
    $(`width-${side}`).addEventListener("input", () => {
      if (side === "left" && state.auto) setAuto(false);
      showDial(side);
      if (!state.stream) askSoon(side);
    });
  }
  $("auto").addEventListener("change", ({ target }) => setAuto(target.checked));
  $("compare").addEventListener("change", ({ target }) => setCompare(target.checked));
  $("int8").addEventListener("change", () => {
    state.answers.clear();
    if (!state.stream) for (const side of state.compare ? SIDES : ["left"]) ask(side);
  });
  $("opacity").addEventListener("input", ({ target }) => {
    state.opacity = target.value / 100;
    draw();
  });
  $("all").addEventListener("click", () => legend.showAll());
  $("none").addEventListener("click", () => legend.hideAll());
  addEventListener("paste", (event) => takeFirst(event.clipboardData));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    takeFirst(event.dataTransfer);
  });
}

function takeFirst(transfer) {
  const file = [...(transfer?.files ?? [])][0];
  if (file) take(file, file.name || "pasted picture");
}

function setAuto(on) {
  state.auto = $("auto").checked = on;
  $("dial-left").parentElement.classList.toggle("automatic", on);
  if (on && !state.stream) ask("left");
}

function setCompare(on) {
  state.compare = on;
  for (const id of ["right", "divider", "badge-right", "dial-right"]) $(id).hidden = !on;
  $("viewer").classList.toggle("comparing", on);
  $("width-left").setAttribute("aria-label", on ? "Width on the left" : "Width");
  draw();
  showShares();
  if (on && !state.stream) askSoon("right");
}

makeDivider($("divider"), $("viewer"));
onUnauthorised(askForKey);
connect();
const loaded = start();
loaded.then(watch);
