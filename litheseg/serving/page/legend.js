// The classes: their colours and shares, which of them are shown, and which one the mouse is on.

export class Legend {
  /**
   * @param {HTMLUListElement} list
   * @param {() => void} changed  called when other classes are to be seen
   */
  constructor(list, changed) {
    Object.assign(this, { list, changed, hidden: new Set(), highlighted: null });
  }

  /** @param {{index: number, name: string, color: string, background: boolean}[]} classes  a background is hidden */
  fill(classes) {
    this.classes = classes;
    this.list.replaceChildren(...classes.map((entry) => this.item(entry)));
    this.hide(new Set(classes.filter(({ background }) => background).map(({ index }) => index)));
  }

  item({ index, name, color }) {
    const [item, button] = [document.createElement("li"), document.createElement("button")];
    const [swatch, label, share] = ["swatch", "name", "share"].map((part) => {
      const span = document.createElement("span");
      span.className = part;
      return span;
    });
    swatch.style.backgroundColor = color;
    label.textContent = label.title = name;
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(swatch, label, share);
    button.addEventListener("click", () => this.toggle(index));
    button.addEventListener("pointerenter", ({ pointerType }) => pointerType === "mouse" && this.highlight(index));
    button.addEventListener("pointerleave", () => this.highlight(null));
    item.append(button);
    return item;
  }

  /** How strongly a class is to be painted, where `opacity` is usual. */
  alpha(index, opacity) {
    if (this.highlighted !== null) return index === this.highlighted ? 0.85 : 0;
    return this.hidden.has(index) ? 0 : opacity;
  }

  toggle(index) {
    const hidden = new Set(this.hidden);
    if (!hidden.delete(index)) hidden.add(index);
    this.hide(hidden);
  }

  showAll() {
    this.hide(new Set());
  }

  hideAll() {
    this.hide(new Set(this.classes.map(({ index }) => index)));
  }

  hide(hidden) {
    Object.assign(this, { hidden, highlighted: null });
    [...this.list.children].forEach((item, k) => item.firstChild.setAttribute("aria-pressed", String(!hidden.has(k))));
    this.changed();
  }

  highlight(index) {
    if (index === this.highlighted || (index !== null && this.hidden.has(index))) return;
    this.highlighted = index;
    this.changed();
  }

  /** @param {number[]} shares  of the picture, by class */
  showShares(shares) {
    [...this.list.children].forEach((item, k) => {
      item.classList.toggle("absent", !shares[k]);
      item.querySelector(".share").textContent = percent(shares[k]);
    });
  }
}

/** A share in words; a dash for nothing at all. */
export function percent(share) {
  if (!share) return "–";
  return share < 0.01 ? "< 1 %" : `${Math.round(100 * share)} %`;
}
