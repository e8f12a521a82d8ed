// <map-view>: a picture of what the disk holds. A strip shows the whole disk and which part of it the grid below shows.

import { button, element, offset, percent, size } from "./format";
import { type Extent, KINDS, type Kind, MEANING, MapModel } from "./map-model";

const CELL = 9;
const GAP = 1;
const ROWS = 26;
const STRIP_HEIGHT = 18;
/** The closest look: bytes per cell. */
const LEAST_PER_CELL = 512;

export class MapView extends HTMLElement {
  #model = new MapModel(0);
  #meaning = MEANING;
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
  /** Size of an open file. */
  sizeOf: (file: string) => number | undefined = () => undefined;
  onpick: (extent: Extent, guest: number) => void = () => {};

  connectedCallback(): void {
    if (this.childElementCount > 0) return;
    this.#caption.id = "map-extent";
    this.#caption.setAttribute("aria-live", "polite");
    this.#grid.tabIndex = 0;
    this.#grid.setAttribute("role", "application");
    this.#grid.setAttribute("aria-describedby", this.#caption.id);
    this.#grid.ariaLabel = "Allocation map. Arrow keys move, plus and minus zoom, Page keys turn pages, Enter shows the bytes.";
    this.#strip.setAttribute("aria-hidden", "true");
    this.#grid.onkeydown = (event) => this.#key(event);
    this.#grid.onfocus = () => this.#tell(this.#guestOf(this.#cursor));
    this.#grid.onblur = () => this.#redraw();
    this.#listen();
    this.append(
      element(
        "div",
        { class: "bar" },
        button("Zoom in", () => this.#zoom(0.5, this.#guestOf(this.#cursor))),
        button("Zoom out", () => this.#zoom(2, this.#guestOf(this.#cursor))),
        button("Whole disk", () => this.#look(0, this.#model.total)),
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

  /** Starts with an empty map of a disk. `unallocated` says what is not allocated means, if not zeroes. */
  reset(total: number, unallocated = MEANING.unallocated): void {
    this.#meaning = { ...MEANING, unallocated };
    this.#model = new MapModel(total);
    this.#cursor = 0;
    this.#caption.textContent = "Reading the map…";
    this.#look(0, total);
  }

  get model(): MapModel {
    return this.#model;
  }

  /** More of the map has arrived, or all of it (`complete`), or as much as will be shown. */
  update(complete?: boolean): void {
    this.#legend.replaceChildren(
      ...KINDS.map((kind) => {
        const bytes = this.#model.bytes[kind];
        const label = element("span", {}, element("strong", { text: kind }), ` ${size(bytes)}, ${percent(bytes, this.#model.total)}`);
        return element("li", { class: `key ${kind}${bytes === 0 ? " none" : ""}`, title: this.#meaning[kind] }, label);
      }),
    );
    if (complete === false) this.#say(`The map ends at ${offset(this.#model.end)}: the disk has more extents than fit in the picture.`);
    else if (complete) this.#tell(this.#guestOf(this.#cursor));
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
      this.#tell(this.#guestOf(this.#cellAt(event)));
    };
    // The finger scrolls the page instead.
    grid.onpointercancel = () => (drag = undefined);
    grid.onpointerup = (event) => {
      const clicked = drag && !drag.moved;
      drag = undefined;
      if (!clicked) return;
      this.#cursor = this.#cellAt(event);
      this.#redraw();
      this.#pick();
    };
    grid.addEventListener(
      "wheel",
      (event) => {
        // A wheel that only passes by scrolls the page.
        if (!event.ctrlKey && !event.metaKey && document.activeElement !== grid) return;
        event.preventDefault();
        this.#zoom(event.deltaY < 0 ? 0.5 : 2, this.#guestOf(this.#cellAt(event)));
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

  #guestOf(cell: number): number {
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
    const shown = whole ? "The whole disk" : `${size(this.#span)} from ${offset(Math.floor(this.#start))}`;
    this.#place.textContent = `${shown}; a cell is ${size(Math.max(1, Math.round(this.#perCell())))}.`;
    this.#redraw();
  }

  /** Zooms so that the guest offset `around` stays where it is. */
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
      "+": () => this.#zoom(0.5, this.#guestOf(this.#cursor)),
      "=": () => this.#zoom(0.5, this.#guestOf(this.#cursor)),
      "-": () => this.#zoom(2, this.#guestOf(this.#cursor)),
      "0": () => this.#look(0, this.#model.total),
      ArrowRight: () => this.#step(1),
      ArrowLeft: () => this.#step(-1),
      ArrowDown: () => this.#step(columns),
      ArrowUp: () => this.#step(-columns),
      PageDown: () => this.#look(this.#start + this.#span, this.#span),
      PageUp: () => this.#look(this.#start - this.#span, this.#span),
      Home: () => this.#jump(0),
      End: () => this.#jump(this.#model.total),
      Enter: () => this.#pick(),
    };
    const act = acts[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
    this.#tell(this.#guestOf(this.#cursor));
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

  /** Says what is at a guest offset. */
  #tell(guest: number): void {
    const extent = this.#model.extentAt(guest);
    if (!extent) return;
    const place = `${offset(extent.start)} to ${offset(extent.start + extent.length - 1)}, ${size(extent.length)}`;
    const lost = extent.offset !== null && extent.offset >= (this.sizeOf(extent.file ?? "") ?? Infinity);
    const file = extent.file?.split(/[/\\]/).at(-1) ?? "the file";
    const stored = extent.offset === null ? "" : ` At ${offset(extent.offset)} in ${file}${lost ? ", which ends before that" : ""}.`;
    const depth = extent.depth > 0 && extent.kind === "backing" ? ` Image ${extent.depth} down the chain.` : "";
    this.#say(`${place}: ${extent.kind}, ${this.#meaning[extent.kind]}.${stored}${depth}`);
  }

  #pick(): void {
    const guest = Math.floor(this.#guestOf(this.#cursor));
    const extent = this.#model.extentAt(guest);
    if (extent) this.onpick(extent, guest);
  }

  /** Draws with the next frame, once. */
  #redraw(): void {
    this.#drawing ||= requestAnimationFrame(() => {
      this.#drawing = 0;
      this.#draw();
    });
  }

  #draw(): void {
    const columns = this.#columns();
    const style = getComputedStyle(this);
    const colors = KINDS.map((kind: Kind) => style.getPropertyValue(`--map-${kind}`));
    const empty = style.getPropertyValue("--map-unallocated");
    const ink = style.getPropertyValue("--ink");
    const paint = (canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D | null => {
      const ratio = devicePixelRatio || 1;
      [canvas.width, canvas.height] = [width * ratio, height * ratio];
      [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
      const context = canvas.getContext("2d");
      context?.scale(ratio, ratio);
      return context;
    };
    const fill = (context: CanvasRenderingContext2D, kind: number, share: number, x: number, y: number, w: number, h: number): void => {
      if (kind < 0) return;
      context.globalAlpha = 1;
      context.fillStyle = empty;
      context.fillRect(x, y, w, h);
      // A cell that is filled in part is paler, but never too pale to be seen.
      context.globalAlpha = 0.4 + 0.6 * Math.min(1, share);
      context.fillStyle = colors[kind] ?? empty;
      context.fillRect(x, y, w, h);
      context.globalAlpha = 1;
    };
    const width = columns * CELL;
    const strip = paint(this.#strip, width, STRIP_HEIGHT);
    const grid = paint(this.#grid, width, ROWS * CELL);
    if (!strip || !grid || this.#model.total === 0) return;
    const all = this.#model.cells(0, this.#model.total, width);
    for (let x = 0; x < width; x++) fill(strip, all.kind[x] as number, all.share[x] as number, x, 3, 1, STRIP_HEIGHT - 6);
    strip.strokeStyle = ink;
    strip.lineWidth = 2;
    const shown = Math.max(4, (this.#span / this.#model.total) * width - 2);
    strip.strokeRect(Math.min(width - shown - 1, 1 + (this.#start / this.#model.total) * width), 1, shown, STRIP_HEIGHT - 2);
    const part = this.#model.cells(this.#start, this.#span, this.#cells());
    for (let cell = 0; cell < part.kind.length; cell++) {
      const [x, y] = [(cell % columns) * CELL, Math.floor(cell / columns) * CELL];
      fill(grid, part.kind[cell] as number, part.share[cell] as number, x, y, CELL - GAP, CELL - GAP);
    }
    if (document.activeElement === this.#grid) {
      grid.strokeStyle = ink;
      grid.lineWidth = 2;
      grid.strokeRect((this.#cursor % columns) * CELL, Math.floor(this.#cursor / columns) * CELL, CELL - GAP, CELL - GAP);
    }
  }
}

customElements.define("map-view", MapView);
