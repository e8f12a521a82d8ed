// <hex-view>: bytes of the disk or of a file. Only the visible rows exist; the scroll bar stands for the whole.

import { button, element, exactly, hex, offset, wholeNumber } from "../format";
import type { Space } from "../protocol";

/** Narrow windows have room for half a row. */
const NARROW = matchMedia("(max-width: 40rem)");
/** Browsers limit how high an element may be, so a long file is scrolled by share rather than by pixel. */
const MAX_SCROLL_PIXELS = 4_000_000;
const PAGE_BYTES = 64 * 1024;
const MAX_PAGES = 64;
/** No more than this goes to the clipboard. */
const MAX_COPY_BYTES = 1 << 20;

export interface Mark {
  offset: number;
  length: number;
}

export interface ByteSpace {
  space: Space;
  label: string;
  size: number;
}

type Reader = (space: Space, offset: number, length: number) => Promise<Uint8Array>;

export class HexView extends HTMLElement {
  #spaces: ByteSpace[] = [];
  #space: ByteSpace = { space: 0, label: "", size: 0 };
  #top = 0;
  #cursor = 0;
  /** The other end of what is selected; the cursor is one end of it. */
  #anchor = 0;
  #mark: Mark | undefined;
  #read: Reader = async () => new Uint8Array();
  #pages = new Map<number, Uint8Array | Promise<Uint8Array>>();
  #select = element("select");
  #position = element("input");
  #scroller = element("div", { class: "scroller" });
  #spacer = element("div", { class: "spacer" });
  #rows = element("div", { class: "rows" });
  #about = element("p", { class: "caption" });
  #rowBytes = 16;
  #turn = 0;
  /** The byte under the cursor has changed. */
  onmove: (space: Space, at: number) => void = () => {};

  connectedCallback(): void {
    if (this.childElementCount > 0) return;
    this.#select.ariaLabel = "Which bytes";
    this.#select.onchange = () => this.show(this.#spaces[this.#select.selectedIndex]?.space ?? 0, 0);
    this.#position.ariaLabel = "Go to offset, in hexadecimal with 0x or decimal";
    this.#position.spellcheck = false;
    this.#position.autocomplete = "off";
    this.#position.onchange = () => this.#go(this.#position.value);
    const scroller = this.#scroller;
    scroller.tabIndex = 0;
    scroller.setAttribute("role", "application");
    scroller.ariaLabel = "Bytes. Arrow keys move by byte and row, Page keys by page, Home and End to the ends; with Shift they select.";
    scroller.onkeydown = (event) => this.#key(event);
    scroller.onscroll = () => this.#scrolled();
    scroller.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    const under = (event: MouseEvent): number | undefined => {
      const at = (event.target as HTMLElement).dataset["at"];
      return at === undefined ? undefined : Number(at);
    };
    this.#rows.onpointerdown = (event) => {
      const at = under(event);
      if (at !== undefined && event.button === 0) this.#moveTo(at, event.shiftKey);
    };
    this.#rows.onpointermove = (event) => {
      const at = under(event);
      if (at !== undefined && event.buttons === 1 && event.pointerType === "mouse" && at !== this.#cursor) this.#moveTo(at, true);
    };
    scroller.oncopy = (event) => {
      event.preventDefault();
      void this.copy("hex");
    };
    scroller.append(this.#rows, this.#spacer);
    this.#about.setAttribute("aria-live", "polite");
    const label = element("label", { text: "Go to " }, this.#position);
    this.append(element("div", { class: "bar" }, this.#select, label, button("Start", () => this.#moveTo(0)), button("End", () => this.#moveTo(Infinity))), scroller, this.#about);
    new ResizeObserver(() => this.#layout()).observe(scroller);
  }

  /** The space that is shown. */
  get space(): ByteSpace {
    return this.#space;
  }

  /** The bytes from the anchor to the cursor, both included. */
  get selection(): Mark {
    const [start, end] = [Math.min(this.#anchor, this.#cursor), Math.max(this.#anchor, this.#cursor)];
    return { offset: start, length: this.#space.size === 0 ? 0 : end - start + 1 };
  }

  /** Puts what is selected on the clipboard; gives how many bytes that were. */
  async copy(as: "hex" | "text"): Promise<number> {
    const { offset: start, length } = this.selection;
    const count = Math.min(length, MAX_COPY_BYTES);
    const bytes = await this.#read(this.#space.space, start, count);
    const text = as === "hex" ? Array.from(bytes, (byte) => hex(byte, 2)).join(" ") : new TextDecoder().decode(bytes);
    await navigator.clipboard.writeText(text);
    return count;
  }

  setup(spaces: ByteSpace[], read: Reader): void {
    this.#spaces = spaces;
    this.#read = read;
    this.#select.replaceChildren(...spaces.map(({ label }) => new Option(label)));
    this.#pages = new Map();
    this.#mark = undefined;
    this.#space = { space: -1, label: "", size: 0 };
    this.show(spaces[0]?.space ?? 0, 0);
  }

  /** Takes the focus to the bytes. */
  focusBytes(): void {
    this.#scroller.focus({ preventScroll: true });
  }

  /** Reads again what is shown: it may have changed. */
  refresh(): void {
    this.#pages = new Map();
    this.#layout();
  }

  /** Shows a place, with bytes marked. */
  show(space: Space, at: number, mark?: Mark): void {
    const index = this.#spaces.findIndex((other) => other.space === space);
    const next = this.#spaces[index];
    if (!next) return;
    if (next !== this.#space) {
      this.#space = next;
      this.#pages = new Map();
      this.#select.selectedIndex = index;
    }
    this.#mark = mark;
    this.#cursor = Math.max(0, Math.min(at, next.size - 1));
    this.#anchor = mark ? Math.min(this.#cursor + Math.max(0, mark.length - 1), Math.max(0, next.size - 1)) : this.#cursor;
    this.#layout();
    const row = Math.floor(this.#cursor / this.#rowBytes);
    if (row < this.#top || row >= this.#top + this.#visible() - 1) this.#scrollTo(row - 2);
    else this.#draw();
  }

  #rowHeight(): number {
    return parseFloat(getComputedStyle(this.#rows).lineHeight) || 20;
  }

  #visible(): number {
    return Math.max(4, Math.floor(this.#scroller.clientHeight / this.#rowHeight()));
  }

  #totalRows(): number {
    return Math.ceil(this.#space.size / this.#rowBytes);
  }

  #lastTop(): number {
    return Math.max(0, this.#totalRows() - this.#visible());
  }

  #layout(): void {
    const rowBytes = NARROW.matches ? 8 : 16;
    this.#top = Math.floor((this.#top * this.#rowBytes) / rowBytes);
    this.#rowBytes = rowBytes;
    const height = Math.min(this.#totalRows() * this.#rowHeight(), MAX_SCROLL_PIXELS);
    this.#spacer.style.height = `${Math.max(0, height - this.#scroller.clientHeight)}px`;
    // What is not seen has no height to scroll in.
    this.#scrollTo(this.#scroller.clientHeight === 0 ? this.#top : Math.min(this.#top, this.#lastTop()));
  }

  #scrollRange(): number {
    return this.#scroller.scrollHeight - this.#scroller.clientHeight;
  }

  #scrolled(): void {
    const range = this.#scrollRange();
    const expected = this.#lastTop() === 0 ? 0 : (this.#top / this.#lastTop()) * range;
    // The bar is where we put it ourselves; one pixel of it may stand for many rows.
    if (range <= 0 || Math.abs(this.#scroller.scrollTop - expected) < 1.5) return;
    this.#top = Math.round((this.#scroller.scrollTop / range) * this.#lastTop());
    this.#draw();
  }

  #scrollTo(row: number): void {
    this.#top = Math.max(0, Math.min(Math.round(row), this.#lastTop()));
    if (this.#lastTop() > 0) this.#scroller.scrollTop = (this.#top / this.#lastTop()) * this.#scrollRange();
    this.#draw();
  }

  #wheel(event: WheelEvent): void {
    if (event.ctrlKey || event.deltaY === 0) return;
    const target = this.#top + Math.sign(event.deltaY) * Math.max(1, Math.round(Math.abs(event.deltaY) / this.#rowHeight()));
    // At an end the page scrolls on.
    if ((target < 0 && this.#top === 0) || (target > this.#lastTop() && this.#top === this.#lastTop())) return;
    event.preventDefault();
    this.#scrollTo(target);
  }

  #key(event: KeyboardEvent): void {
    const page = (this.#visible() - 1) * this.#rowBytes;
    const moves: Record<string, number> = {
      ArrowDown: this.#rowBytes,
      ArrowUp: -this.#rowBytes,
      ArrowRight: 1,
      ArrowLeft: -1,
      PageDown: page,
      PageUp: -page,
      Home: -Infinity,
      End: Infinity,
    };
    const move = moves[event.key];
    if (move === undefined || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.#moveTo(this.#cursor + move, event.shiftKey);
  }

  #moveTo(at: number, extend = false): void {
    this.#cursor = Math.max(0, Math.min(at, this.#space.size - 1));
    if (!extend) this.#anchor = this.#cursor;
    const row = Math.floor(this.#cursor / this.#rowBytes);
    if (row < this.#top) this.#scrollTo(row);
    else if (row > this.#top + this.#visible() - 1) this.#scrollTo(row - this.#visible() + 1);
    else this.#draw();
    this.onmove(this.#space.space, this.#cursor);
  }

  #go(text: string): void {
    const at = wholeNumber(text);
    if (at === undefined || at >= Math.max(1, this.#space.size)) {
      this.#position.setCustomValidity(`An offset from 0 to ${offset(Math.max(0, this.#space.size - 1))}, such as 0x10000 or 65536`);
      this.#position.reportValidity();
      return;
    }
    this.#position.setCustomValidity("");
    this.#moveTo(at);
    this.#scrollTo(Math.floor(at / this.#rowBytes) - 2);
  }

  /** A page of bytes, or a promise for it. */
  #page(number: number): Uint8Array | Promise<Uint8Array> {
    const known = this.#pages.get(number);
    if (known) return known;
    const start = number * PAGE_BYTES;
    const pages = this.#pages;
    const page = this.#read(this.#space.space, start, Math.min(PAGE_BYTES, this.#space.size - start)).then(
      (bytes) => {
        pages.set(number, bytes);
        return bytes;
      },
      (error: unknown) => {
        pages.delete(number);
        throw error;
      },
    );
    pages.set(number, page);
    if (pages.size > MAX_PAGES) pages.delete(pages.keys().next().value as number);
    return page;
  }

  #draw(): void {
    const turn = ++this.#turn;
    const start = this.#top * this.#rowBytes;
    const end = Math.min(this.#space.size, start + (this.#visible() + 1) * this.#rowBytes);
    const needed: (Uint8Array | Promise<Uint8Array>)[] = [];
    const first = Math.floor(start / PAGE_BYTES);
    for (let number = first; number * PAGE_BYTES < end; number++) needed.push(this.#page(number));
    const paint = (pages: Uint8Array[]): void => {
      if (turn !== this.#turn) return;
      this.#paint(start, end, (at) => pages[Math.floor(at / PAGE_BYTES) - first]?.[at % PAGE_BYTES]);
    };
    if (needed.every((page) => page instanceof Uint8Array)) return paint(needed as Uint8Array[]);
    Promise.all(needed).then(paint, (error: Error) => {
      if (turn === this.#turn) this.#rows.replaceChildren(element("p", { class: "error", text: error.message }));
    });
  }

  #paint(start: number, end: number, byteAt: (at: number) => number | undefined): void {
    const digits = Math.max(8, hex(this.#space.size).length);
    const mark = this.#mark;
    const selected = this.selection;
    const rows: HTMLElement[] = [];
    for (let row = start; row < end; row += this.#rowBytes) {
      const bytes = element("span", { class: "bytes" });
      const text = element("span", { class: "text" });
      for (let at = row; at < row + this.#rowBytes; at++) {
        const byte = at < end ? byteAt(at) : undefined;
        const shown = element("span", { text: byte === undefined ? "  " : hex(byte, 2) });
        const printable = byte !== undefined && byte >= 32 && byte < 127;
        const letter = element("span", { text: byte === undefined ? " " : printable ? String.fromCharCode(byte) : "·" });
        for (const cell of [shown, letter]) {
          if (byte === undefined) continue;
          cell.dataset["at"] = String(at);
          if (byte === 0) cell.classList.add("zero");
          if (mark && at >= mark.offset && at < mark.offset + mark.length) cell.classList.add("marked");
          if (selected.length > 1 && at >= selected.offset && at < selected.offset + selected.length) cell.classList.add("selected");
          if (at === this.#cursor) cell.classList.add("cursor");
        }
        bytes.append(shown);
        text.append(letter);
      }
      rows.push(element("div", { class: "row" }, element("span", { class: "at", text: hex(row, digits) }), bytes, text));
    }
    if (rows.length === 0) rows.push(element("p", { text: "There are no bytes here." }));
    this.#rows.replaceChildren(...rows);
    if (document.activeElement !== this.#position) this.#position.value = offset(this.#cursor);
    this.#describe(byteAt);
  }

  /** What the bytes at the cursor are as numbers. */
  #describe(byteAt: (at: number) => number | undefined): void {
    const bytes = Array.from({ length: 8 }, (_, index) => byteAt(this.#cursor + index));
    const known = bytes.findIndex((byte) => byte === undefined);
    const length = known < 0 ? 8 : known;
    if (length === 0) {
      this.#about.textContent = "";
      return;
    }
    const number = (count: number): bigint => bytes.slice(0, count).reduce((value, byte) => (value << 8n) | BigInt(byte ?? 0), 0n);
    const parts = [1, 2, 4, 8].filter((count) => count <= length).map((count) => `${count * 8} bits ${number(count)}`);
    const selected = this.selection.length > 1 ? ` ${exactly(this.selection.length)} selected from ${offset(this.selection.offset)}.` : "";
    this.#about.textContent = `At ${offset(this.#cursor)} (${this.#cursor}), big-endian: ${parts.join(", ")}.${selected}`;
  }
}

customElements.define("hex-view", HexView);
