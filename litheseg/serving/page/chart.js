// The last answers as bars (milliseconds of work, and of waiting above it) over the width that each ran at.

const KEPT = 48;
const [BARS, STEPS, GAP] = [78, 26, 14]; // heights in pixels
const LEFT = 34;

export class Chart {
  /** @param {SVGSVGElement} svg */
  constructor(svg) {
    this.svg = svg;
    this.answers = [];
    new ResizeObserver(() => this.draw()).observe(svg);
  }

  /** @param {{work: number, queue: number, width: number, side: string}} answer */
  add(answer) {
    this.answers = [...this.answers, answer].slice(-KEPT);
    this.draw();
  }

  draw() {
    const width = this.svg.clientWidth;
    if (!width) return;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${BARS + GAP + STEPS}`);
    if (!this.answers.length) {
      this.svg.replaceChildren(text("Every answer becomes a bar here.", { x: 0, y: 20, class: "nothing" }));
      return;
    }
    const top = niceTop(Math.max(1, ...this.answers.map((a) => a.work + a.queue)));
    const step = (width - LEFT) / KEPT;
    const parts = [axis(0, width, top, "ms"), axis(BARS, width, 0, "")];
    this.answers.forEach((answer, k) => parts.push(...bars(answer, LEFT + k * step, step, top)));
    parts.push(label(BARS + GAP + 8, "1"), label(BARS + GAP + STEPS, "0"));
    parts.push(line(LEFT, width, BARS + GAP + STEPS));
    for (const side of ["left", "right"]) parts.push(...this.steps(side, step));
    this.svg.replaceChildren(...parts);
    this.svg.setAttribute("aria-label", this.described());
  }

  steps(side, step) {
    return this.answers.flatMap((answer, k) => {
      if (answer.side !== side) return [];
      const y = BARS + GAP + STEPS - answer.width * STEPS;
      const x = LEFT + k * step;
      return [element("path", { d: `M${x} ${y} H${x + step}`, class: `step ${side}` })];
    });
  }

  described() {
    if (!this.answers.length) return "No answers yet";
    const times = this.answers.map((a) => a.work + a.queue).sort((a, b) => a - b);
    const [middle, last] = [times[times.length >> 1], this.answers.at(-1)];
    return (
      `${times.length} answers, half of them within ${middle.toFixed(0)} milliseconds, ` +
      `the slowest ${times.at(-1).toFixed(0)}; the last one at width ${last.width}`
    );
  }
}

function bars(answer, x, step, top) {
  const [work, queue] = [(answer.work / top) * BARS, (answer.queue / top) * BARS];
  const width = Math.max(1.5, step - 1.5);
  return [
    element("rect", { class: `work ${answer.side}`, x, y: BARS - work, width, height: work, rx: 1 }),
    element("rect", { class: "queue", x, y: BARS - work - queue, width, height: queue, rx: 1 }),
  ];
}

function axis(y, width, number, unit) {
  const group = element("g", {});
  group.append(line(LEFT, width, y), label(y + 4, number), label(y + 16, unit));
  return group;
}

function line(from, to, y) {
  return element("path", { class: "axis", d: `M${from} ${y + 0.5} H${to}` });
}

function label(y, content) {
  return text(content, { x: LEFT - 6, y, "text-anchor": "end" });
}

function text(content, attributes) {
  const node = element("text", attributes);
  node.textContent = content;
  return node;
}

/** The next of 1, 2, 5, 10, 20, ... */
function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((k) => k * power).find((k) => k >= value);
}

function element(name, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}
