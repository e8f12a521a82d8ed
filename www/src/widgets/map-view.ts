// <map-view>: a picture of what a disk or a file holds. A strip shows the whole and which part of it the grid below shows.

import { button, element, offset, percent, size } from "../format";
import type { Cells, Marks } from "./runs";

/** What a picture is of. */
export interface Picture {
  /** Bytes of the whole. */
  readonly total: number;
  /** Offset up to which it is known. */
  readonly end: number;
  /** In the order of `bytes`, and of the numbers in `cells`; a lower one shows where several meet. */
  readonly kinds: readonly { name: string; meaning: string }[];
  readonly bytes: readonly number[];
  cells(start: number, span: number, cells: number): Cells;
  /** What is at an offset, in a sentence. */
  describe(at: number): string | undefined;
}

const NOTHING: Picture = { total: 0, end: 0, kinds: [], bytes: [], cells: (_, __, cells) => ({ kind: new Int8Array(cells).fill(-1), share: new Float32Array(cells), done: true }), describe: () => undefined };

const CELL = 9;
const GAP = 1;
const ROWS = 26;
const STRIP_HEIGHT = 18;
/** While a map arrives it is drawn this often. */
const UPDATE_MILLISECONDS = 100;
/** A legend with more kinds leaves out those that do not occur. */
const MAX_EXPLAINED = 6;
/** The closest look: bytes per cell. */
const LEAST_PER_CELL = 512;

type Rgb = readonly [red: number, green: number, blue: number];

/** The parts of a color that is written as `#rrggbb`. */
function rgb(color: string): Rgb {
  const number = parseInt(color.trim().slice(1), 16);
  return [(number >> 16) & 255, (number >> 8) & 255, number & 255];
}

/** Gives a canvas a size in CSS pixels; what is painted is not smoothed. */
function sized(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D | null {
  const ratio = devicePixelRatio || 1;
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
  const context = canvas.getContext("2d");
  context?.scale(ratio, ratio);
  if (context) context.imageSmoothingEnabled = false;
  return context;
}

/** A pixel for each cell, none where nothing is known. A cell that is filled in part is paler, never too pale to be seen. */
function pixels({ kind, share }: Cells, columns: number, rows: number, colors: readonly Rgb[], empty: Rgb): OffscreenCanvas {
  const canvas = new OffscreenCanvas(columns, rows);
  const image = new ImageData(columns, rows);
  for (let cell = 0; cell < kind.length; cell++) {
    const color = colors[kind[cell] as number];
    if (!color) continue;
    const weight = 0.4 + 0.6 * Math.min(1, share[cell] as number);
    for (let part = 0; part < 3; part++) image.data[cell * 4 + part] = (color[part] as number) * weight + (empty[part] as number) * (1 - weight);
    image.data[cell * 4 + 3] = 255;
  }
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}

export class MapView extends HTMLElement {
  #model: Picture = NOTHING;
  #whole: string;
  #start = 0;
  #span = 0;
  /** The cell that the keyboard is on. */
  #cursor = 0;
  #strip = element("canvas", { class: "strip" });
  #grid = element("canvas", { class: "grid" });
  #place = element("p", { class: "caption" });
  #caption = element("p", { class: "caption extent" });
  #legend = element("ul", { class: "legend" });
  #drawing = 0;
  #updating = 0;
  #marks: Marks | undefined;
  #highlight: { start: number; length: number } | undefined;
  /** An offset was chosen. */
  onpick: (at: number) => void = () => {};
  /** The cursor is at an offset. */
  onpoint: (at: number) => void = () => {};

  /** `whole` is what the picture is of, such as "disk". */
  constructor(whole = "disk") {
    super();
    this.#whole = whole;
  }

  connectedCallback(): void {
    if (this.childElementCount > 0) return;
    this.#caption.id = `${this.#whole}-extent`;
    this.#caption.setAttribute("aria-live", "polite");
    this.#grid.tabIndex = 0;
    this.#grid.setAttribute("role", "application");
    this.#grid.setAttribute("aria-describedby", this.#caption.id);
    this.#grid.ariaLabel = `Map of the ${this.#whole}. Arrow keys move, plus and minus zoom, Page keys turn pages, Enter shows the bytes.`;
    this.#strip.setAttribute("aria-hidden", "true");
    this.#grid.onkeydown = (event) => this.#key(event);
    this.#grid.onfocus = () => this.#tell(this.#offsetOf(this.#cursor));
    this.#grid.onblur = () => this.#redraw();
    this.#listen();
    this.append(
      element(
        "div",
        { class: "bar" },
        button("Zoom in", () => this.#zoom(0.5, this.#offsetOf(this.#cursor))),
        button("Zoom out", () => this.#zoom(2, this.#offsetOf(this.#cursor))),
        button(`Whole ${this.#whole}`, () => this.#look(0, this.#model.total)),
        this.#place,
      ),
      this.#strip,
      this.#grid,
      this.#caption,
      this.#legend,
    );
    new ResizeObserver(() => this.#redraw()).observe(this);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
  }

  /** Starts a picture, of which nothing may be known yet. */
  reset(model: Picture): void {
    this.#model = model;
    this.#marks = undefined;
    this.#highlight = undefined;
    this.#cursor = 0;
    this.#caption.textContent = "Reading the map…";
    this.#look(0, model.total);
  }

  /** Marks ranges on the picture, such as what a bitmap holds dirty; nothing takes the marks away. */
  set marks(marks: Marks | undefined) {
    this.#marks = marks;
    this.#redraw();
  }

  /** Says more about what the cursor is on. */
  note(text: string): void {
    if (text !== "") this.#say(`${this.#model.describe(Math.floor(this.#offsetOf(this.#cursor))) ?? ""} ${text}`);
  }

  /** Frames a range, and brings it into the picture; without a length nothing is framed. */
  highlight(start: number, length: number): void {
    this.#highlight = length > 0 ? { start, length } : undefined;
    if (length === 0) return this.#redraw();
    if (start < this.#start || start >= this.#start + this.#span) this.#look(start - this.#span / 2, this.#span);
    this.#redraw();
  }

  /** Shows an offset closely, with the cursor on it. */
  lookAt(at: number): void {
    if (at < this.#start || at >= this.#start + this.#span) this.#look(at - this.#span / 2, this.#span);
    this.#cursor = Math.max(0, Math.min(this.#cells() - 1, Math.floor((at - this.#start) / this.#perCell())));
    this.#tell(at);
    this.#redraw();
  }

  /** More of the map has arrived, or all of it (`complete`), or as much as will be shown. Pictures of parts are not hurried. */
  update(complete?: boolean): void {
    if (complete === undefined) {
      this.#updating ||= window.setTimeout(() => this.#show(), UPDATE_MILLISECONDS);
      return;
    }
    this.#show();
    if (complete === false) this.#say(`The map ends at ${offset(this.#model.end)}: there is more than fits in the picture.`);
    else this.#tell(this.#offsetOf(this.#cursor));
  }

  #show(): void {
    clearTimeout(this.#updating);
    this.#updating = 0;
    this.#legend.replaceChildren(
      ...this.#model.kinds.flatMap(({ name, meaning }, index) => {
        const bytes = this.#model.bytes[index] ?? 0;
        // Of many kinds only those are explained that there are.
        if (bytes === 0 && this.#model.kinds.length > MAX_EXPLAINED) return [];
        const label = element("span", {}, element("strong", { text: name.replaceAll("-", " ") }), ` ${size(bytes)}, ${percent(bytes, this.#model.total)}`);
        return element("li", { class: `key ${name}${bytes === 0 ? " none" : ""}`, title: meaning }, label);
      }),
    );
    this.#redraw();
  }

  fail(message: string): void {
    this.#say(`The map cannot be shown: ${message}`);
  }

  #listen(): void {
    const grid = this.#grid;
    let drag: { x: number; start: number; moved: boolean } | undefined;
    grid.onpointerdown = (event) => {
      drag = { x: event.clientX, start: this.#start, moved: false };
      grid.setPointerCapture(event.pointerId);
    };
    grid.onpointermove = (event) => {
      if (drag && this.#span < this.#model.total) {
        const cells = Math.round((drag.x - event.clientX) / CELL);
        if (cells !== 0) drag.moved = true;
        if (drag.moved) this.#look(drag.start + cells * this.#perCell(), this.#span);
      }
      this.#tell(this.#offsetOf(this.#cellAt(event)));
    };
    // The finger scrolls the page instead.
    grid.onpointercancel = () => (drag = undefined);
    grid.onpointerup = (event) => {
      const clicked = drag && !drag.moved;
      drag = undefined;
      if (!clicked) return;
      this.#cursor = this.#cellAt(event);
      this.#redraw();
      this.pick();
    };
    grid.addEventListener(
      "wheel",
      (event) => {
        // A wheel that only passes by scrolls the page.
        if (!event.ctrlKey && !event.metaKey && document.activeElement !== grid) return;
        event.preventDefault();
        this.#zoom(event.deltaY < 0 ? 0.5 : 2, this.#offsetOf(this.#cellAt(event)));
      },
      { passive: false },
    );
    this.#strip.onpointerdown = (event) => this.#strip.setPointerCapture(event.pointerId);
    this.#strip.onpointermove = (event) => {
      if (event.buttons === 0) return;
      const box = this.#strip.getBoundingClientRect();
      this.#look(((event.clientX - box.left) / box.width) * this.#model.total - this.#span / 2, this.#span);
    };
    this.#strip.onclick = (event) => {
      const box = this.#strip.getBoundingClientRect();
      this.#look(((event.clientX - box.left) / box.width) * this.#model.total - this.#span / 2, this.#span);
    };
  }

  #columns(): number {
    return Math.max(8, Math.floor(this.clientWidth / CELL));
  }

  #cells(): number {
    return this.#columns() * ROWS;
  }

  #perCell(): number {
    return this.#span / this.#cells();
  }

  #offsetOf(cell: number): number {
    return Math.min(this.#start + cell * this.#perCell(), Math.max(0, this.#model.total - 1));
  }

  #cellAt(event: MouseEvent): number {
    const box = this.#grid.getBoundingClientRect();
    const column = Math.min(this.#columns() - 1, Math.max(0, Math.floor((event.clientX - box.left) / CELL)));
    const row = Math.min(ROWS - 1, Math.max(0, Math.floor((event.clientY - box.top) / CELL)));
    return row * this.#columns() + column;
  }

  #look(start: number, span: number): void {
    const { total } = this.#model;
    this.#span = Math.min(Math.max(span, Math.min(total, this.#cells() * LEAST_PER_CELL)), total);
    this.#start = Math.max(0, Math.min(start, total - this.#span));
    const whole = this.#span === total;
    const shown = whole ? `The whole ${this.#whole}` : `${size(this.#span)} from ${offset(Math.floor(this.#start))}`;
    this.#place.textContent = `${shown}; a cell is ${size(Math.max(1, Math.round(this.#perCell())))}.`;
    this.#redraw();
  }

  /** Zooms so that the offset `around` stays where it is. */
  #zoom(factor: number, around: number): void {
    const share = this.#span > 0 ? (around - this.#start) / this.#span : 0;
    const span = Math.min(Math.max(this.#span * factor, 1), this.#model.total);
    this.#look(around - share * span, span);
    this.#cursor = Math.max(0, Math.min(this.#cells() - 1, Math.floor((around - this.#start) / this.#perCell())));
    this.#tell(around);
  }

  #key(event: KeyboardEvent): void {
    const columns = this.#columns();
    const acts: Record<string, () => void> = {
      "+": () => this.#zoom(0.5, this.#offsetOf(this.#cursor)),
      "=": () => this.#zoom(0.5, this.#offsetOf(this.#cursor)),
      "-": () => this.#zoom(2, this.#offsetOf(this.#cursor)),
      "0": () => this.#look(0, this.#model.total),
      ArrowRight: () => this.#step(1),
      ArrowLeft: () => this.#step(-1),
      ArrowDown: () => this.#step(columns),
      ArrowUp: () => this.#step(-columns),
      PageDown: () => this.#look(this.#start + this.#span, this.#span),
      PageUp: () => this.#look(this.#start - this.#span, this.#span),
      Home: () => this.#jump(0),
      End: () => this.#jump(this.#model.total),
      Enter: () => this.pick(),
    };
    const act = acts[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    this.#tell(this.#offsetOf(this.#cursor));
    this.#redraw();
  }

  #jump(guest: number): void {
    this.#look(guest === 0 ? 0 : guest - this.#span, this.#span);
    this.#cursor = guest === 0 ? 0 : this.#cells() - 1;
  }

  /** Moves the cursor, and the picture with it at its edges. */
  #step(by: number): void {
    const next = this.#cursor + by;
    if (next >= 0 && next < this.#cells()) {
      this.#cursor = next;
      return;
    }
    const rows = Math.sign(by) * this.#columns();
    const before = this.#start;
    this.#look(this.#start + rows * this.#perCell(), this.#span);
    if (this.#start !== before) this.#cursor = next - rows;
  }

  #say(text: string): void {
    if (this.#caption.textContent !== text) this.#caption.textContent = text;
  }

  /** Says what is at an offset. */
  #tell(at: number): void {
    const text = this.#model.describe(Math.floor(at));
    if (text === undefined) return;
    this.#say(text);
    this.onpoint(Math.floor(at));
  }

  /** Chooses what the cursor is on. */
  pick(): void {
    const at = Math.floor(this.#offsetOf(this.#cursor));
    if (at < this.#model.end) this.onpick(at);
  }

  /** Draws with the next frame, once. */
  #redraw(): void {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#draw();
    });
  }

  #draw(): void {
    // What is not seen is drawn when it is: its size changes then.
    if (this.clientWidth === 0) return;
    const columns = this.#columns();
    const style = getComputedStyle(this);
    const empty = rgb(style.getPropertyValue("--map-unallocated"));
    const panel = style.getPropertyValue("--panel");
    const ink = style.getPropertyValue("--ink");
    const colors = this.#model.kinds.map(({ name }) => rgb(style.getPropertyValue(`--map-${name}`)));
    const width = columns * CELL;
    const strip = sized(this.#strip, width, STRIP_HEIGHT);
    const grid = sized(this.#grid, width, ROWS * CELL);
    if (!strip || !grid || this.#model.total === 0) return;
    const whole = this.#model.cells(0, this.#model.total, width);
    const part = this.#model.cells(this.#start, this.#span, this.#cells());
    const marked = this.#marks?.cells(this.#start, this.#span, this.#cells());
    if (!whole.done || !part.done || marked?.done === false) this.#redraw();
    strip.drawImage(pixels(whole, width, 1, colors, empty), 0, 3, width, STRIP_HEIGHT - 6);
    strip.strokeStyle = ink;
    strip.lineWidth = 2;
    const shown = Math.max(4, (this.#span / this.#model.total) * width - 2);
    strip.strokeRect(Math.min(width - shown - 1, 1 + (this.#start / this.#model.total) * width), 1, shown, STRIP_HEIGHT - 2);
    grid.drawImage(pixels(part, columns, ROWS, colors, empty), 0, 0, width, ROWS * CELL);
    grid.fillStyle = panel;
    for (let column = 1; column <= columns; column++) grid.fillRect(column * CELL - GAP, 0, GAP, ROWS * CELL);
    for (let row = 1; row <= ROWS; row++) grid.fillRect(0, row * CELL - GAP, width, GAP);
    grid.fillStyle = ink;
    for (let cell = 0; marked && cell < marked.kind.length; cell++) {
      if ((marked.kind[cell] as number) < 0) continue;
      grid.fillRect((cell % columns) * CELL + 2, Math.floor(cell / columns) * CELL + 2, CELL - GAP - 4, CELL - GAP - 4);
    }
    const lit = this.#highlight;
    if (lit && lit.start < this.#start + this.#span && lit.start + lit.length > this.#start) {
      const from = Math.max(0, Math.floor((lit.start - this.#start) / this.#perCell()));
      const to = Math.min(this.#cells() - 1, Math.floor((lit.start + lit.length - 1 - this.#start) / this.#perCell()));
      grid.strokeStyle = style.getPropertyValue("--bad");
      grid.lineWidth = 1.5;
      for (let cell = from; cell <= to; cell++) grid.strokeRect((cell % columns) * CELL, Math.floor(cell / columns) * CELL, CELL - GAP, CELL - GAP);
    }
    if (document.activeElement === this.#grid) {
      grid.strokeStyle = ink;
      grid.lineWidth = 2;
      grid.strokeRect((this.#cursor % columns) * CELL, Math.floor(this.#cursor / columns) * CELL, CELL - GAP, CELL - GAP);
    }
  }
}

customElements.define("map-view", MapView);
