// The divider between two widths: dragged, or moved with the arrow keys.

/**
 * @param {HTMLElement} handle  with role="slider"
 * @param {HTMLElement} area  gets the custom property --split
 */
export function makeDivider(handle, area) {
  let split = 50;

  function move(to) {
    split = Math.min(100, Math.max(0, to));
    area.style.setProperty("--split", `${split}%`);
    handle.setAttribute("aria-valuenow", Math.round(split));
    handle.setAttribute("aria-valuetext", `${Math.round(split)} percent from the left`);
  }

  function follow(event) {
    const box = area.getBoundingClientRect();
    move((100 * (event.clientX - box.left)) / box.width);
  }

  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    handle.focus();
    event.preventDefault();
  });
  handle.addEventListener("pointermove", (event) => {
    if (handle.hasPointerCapture(event.pointerId)) follow(event);
  });
  handle.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 10 : 2;
    const targets = {
      ArrowLeft: split - by,
      ArrowDown: split - by,
      ArrowRight: split + by,
      ArrowUp: split + by,
      PageDown: split - 10,
      PageUp: split + 10,
      Home: 0,
      End: 100,
    };
    if (!(event.key in targets)) return;
    move(targets[event.key]);
    event.preventDefault();
  });
  move(50);
}
