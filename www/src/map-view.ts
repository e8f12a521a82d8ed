// <map-view>: a picture of what the disk holds. The width is the visible part of the disk, row by row.

import type { Extent } from "diskette";

import { element, hex, size } from "./format";

type Kind = "data" | "compressed" | "zero" | "backing" | "unallocated";

const COLORS: Record<Kind, string> = {
  data: "--map-data",
  compressed: "--map-compressed",
  zero: "--map-zero",
  backing: "--map-backing",
  unallocated: "--map-empty",
};
const CELL = 8;
const ROWS = 24;

function kindOf(extent: Extent): Kind {
  if (extent.compressed) return "compressed";
  if (extent.data) return extent.depth > 0 ? "backing" : "data";
  return extent.present ? "zero" : "unallocated";
}

export class MapView extends HTMLElement {
  #extents: Extent[] = [];
  #total = 0;
  #start = 0;
  #span = 0;
  #canvas = element("canvas");
  #caption = element("p", { class: "caption" });
  onpick: (extent: Extent, guest: number) => void = () => {};

  connectedCallback(): void {
    if (this.childElementCount > 0) return;
    const canvas = this.#canvas;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.onkeydown = (event) => this.#key(event);
    canvas.onmousemove = (event) => this.#describe(this.#guestAt(event));
    canvas.onclick = (event) => this.#pick(this.#guestAt(event));
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.#zoom(event.deltaY < 0 ? 0.5 : 2, this.#guestAt(event));
      },
      { passive: false },
    );
    const button = (label: string, act: () => void) => {
      const made = element("button", { text: label });
      made.onclick = act;
      return made;
    };
    const middle = () => this.#start + this.#span / 2;
    const legend = element("ul", { class: "legend" });
    for (const kind of Object.keys(COLORS) as Kind[]) legend.append(element("li", { class: `key ${kind}`, text: kind }));
    this.append(
      element(
        "div",
        { class: "bar" },
        button("Zoom in", () => this.#zoom(0.5, middle())),
        button("Zoom out", () => this.#zoom(2, middle())),
        button("Whole disk", () => this.#look(0, this.#total)),
      ),
      canvas,
      this.#caption,
      legend,
    );
    new ResizeObserver(() => this.#draw()).observe(this);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  setup(extents: Extent[], total: number): void {
    this.#extents = extents;
    this.#total = total;
    this.#look(0, total);
  }

  #look(start: number, span: number): void {
    this.#span = Math.min(Math.max(span, Math.min(this.#total, 65536)), this.#total);
    this.#start = Math.max(0, Math.min(start, this.#total - this.#span));
    this.#draw();
    this.#caption.textContent = `Shown: ${size(this.#span)} from offset 0x${hex(Math.floor(this.#start))}. ${this.#extents.length} extents in all.`;
    this.#canvas.ariaLabel = `Allocation map. ${this.#caption.textContent} Plus and minus zoom, arrow keys move.`;
  }

  #zoom(factor: number, around: number): void {
    const share = this.#span > 0 ? (around - this.#start) / this.#span : 0;
    const span = this.#span * factor;
    this.#look(around - share * span, span);
  }

  #key(event: KeyboardEvent): void {
    const middle = this.#start + this.#span / 2;
    const acts: Record<string, () => void> = {
      "+": () => this.#zoom(0.5, middle),
      "=": () => this.#zoom(0.5, middle),
      "-": () => this.#zoom(2, middle),
      ArrowRight: () => this.#look(this.#start + this.#span / 8, this.#span),
      ArrowLeft: () => this.#look(this.#start - this.#span / 8, this.#span),
      ArrowDown: () => this.#look(this.#start + this.#span / 2, this.#span),
      ArrowUp: () => this.#look(this.#start - this.#span / 2, this.#span),
      Home: () => this.#look(0, this.#span),
      End: () => this.#look(this.#total, this.#span),
      Enter: () => this.#pick(middle),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }

  /** Index of the extent that holds a guest offset. */
  #find(guest: number): number {
    let low = 0;
    let high = this.#extents.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.#extents[middle]?.start ?? 0) <= guest) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  #columns(): number {
    return Math.max(1, Math.floor(this.clientWidth / CELL));
  }

  #guestAt(event: MouseEvent): number {
    const box = this.#canvas.getBoundingClientRect();
    const column = Math.min(this.#columns() - 1, Math.floor((event.clientX - box.left) / CELL));
    const row = Math.min(ROWS - 1, Math.floor((event.clientY - box.top) / CELL));
    return this.#start + ((row * this.#columns() + column) / (this.#columns() * ROWS)) * this.#span;
  }

  #describe(guest: number): void {
    const extent = this.#extents[this.#find(guest)];
    if (!extent) return;
    const where = extent.offset === null ? "" : `, stored at 0x${hex(extent.offset)}`;
    const depth = extent.depth > 0 ? `, ${extent.depth} image(s) down` : "";
    this.#caption.textContent = `0x${hex(extent.start)}, ${size(extent.length)}: ${kindOf(extent)}${where}${depth}`;
  }

  #pick(guest: number): void {
    const extent = this.#extents[this.#find(guest)];
    if (extent) this.onpick(extent, Math.floor(guest));
  }

  #draw(): void {
    const columns = this.#columns();
    const ratio = devicePixelRatio || 1;
    this.#canvas.width = columns * CELL * ratio;
    this.#canvas.height = ROWS * CELL * ratio;
    this.#canvas.style.width = `${columns * CELL}px`;
    this.#canvas.style.height = `${ROWS * CELL}px`;
    const context = this.#canvas.getContext("2d");
    if (!context || this.#span === 0) return;
    const style = getComputedStyle(this);
    const color = Object.fromEntries(Object.entries(COLORS).map(([kind, name]) => [kind, style.getPropertyValue(name)]));
    context.scale(ratio, ratio);
    const cells = columns * ROWS;
    const step = this.#span / cells;
    let index = this.#find(this.#start);
    for (let cell = 0; cell < cells; cell++) {
      const from = this.#start + cell * step;
      const to = from + step;
      while (index + 1 < this.#extents.length && (this.#extents[index + 1]?.start ?? Infinity) <= from) index++;
      // A cell shows the most telling thing in it, so that a small allocation in a large disk is seen.
      let shown: Kind = "unallocated";
      for (let at = index; at < this.#extents.length; at++) {
        const extent = this.#extents[at];
        if (!extent || extent.start >= to) break;
        const kind = kindOf(extent);
        if (Object.keys(COLORS).indexOf(kind) < Object.keys(COLORS).indexOf(shown)) shown = kind;
        if (shown === "data") break;
      }
      context.fillStyle = color[shown] ?? "gray";
      context.fillRect((cell % columns) * CELL, Math.floor(cell / columns) * CELL, CELL - 1, CELL - 1);
    }
  }
}

customElements.define("map-view", MapView);
