// <hex-view>: bytes of the disk or of the file, of which only the visible rows exist.

import { element, hex } from "./format";
import type { Space } from "./protocol";

const ROW_BYTES = 16;
const ROWS = 24;

export interface Mark {
  offset: number;
  length: number;
}

type Reader = (space: Space, offset: number, length: number) => Promise<Uint8Array>;

export class HexView extends HTMLElement {
  #space: Space = "file";
  #sizes: Record<Space, number> = { file: 0, guest: 0 };
  #offset = 0;
  #mark: Mark | undefined;
  #read: Reader = async () => new Uint8Array();
  #body = element("pre", { class: "hex" });
  #position = element("input");
  #spaces = element("select");
  #turn = 0;

  connectedCallback(): void {
    if (this.childElementCount > 0) return;
    this.#spaces.append(new Option("file bytes", "file"), new Option("disk bytes", "guest"));
    this.#spaces.ariaLabel = "Which bytes";
    this.#spaces.onchange = () => this.show(this.#spaces.value as Space, 0);
    this.#position.ariaLabel = "Offset";
    this.#position.onchange = () => this.show(this.#space, Number(this.#position.value) || 0);
    const step = (label: string, rows: number) => {
      const button = element("button", { text: label });
      button.onclick = () => this.#move(rows);
      return button;
    };
    this.#body.tabIndex = 0;
    this.#body.ariaLabel = "Bytes; arrow and page keys move";
    this.#body.setAttribute("role", "region");
    this.#body.onkeydown = (event) => {
      const rows = { ArrowDown: 1, ArrowUp: -1, PageDown: ROWS, PageUp: -ROWS, Home: -Infinity, End: Infinity }[event.key];
      if (rows === undefined) return;
      event.preventDefault();
      this.#move(rows);
    };
    this.#body.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.#move(Math.sign(event.deltaY) * 3);
      },
      { passive: false },
    );
    const bar = element("div", { class: "bar" }, this.#spaces, this.#position, step("Back", -ROWS), step("Forward", ROWS));
    this.append(bar, this.#body);
  }

  setup(fileSize: number, guestSize: number, read: Reader): void {
    this.#sizes = { file: fileSize, guest: guestSize };
    this.#read = read;
    this.show("file", 0);
  }

  /** Shows a place, with bytes marked. */
  show(space: Space, offset: number, mark?: Mark): void {
    this.#space = space;
    this.#mark = mark;
    this.#spaces.value = space;
    const last = Math.max(0, Math.ceil(this.#sizes[space] / ROW_BYTES) - ROWS) * ROW_BYTES;
    this.#offset = Math.max(0, Math.min(Math.floor(offset / ROW_BYTES) * ROW_BYTES, last));
    this.#position.value = `0x${hex(this.#offset)}`;
    void this.#draw();
  }

  #move(rows: number): void {
    const target = rows === -Infinity ? 0 : rows === Infinity ? this.#sizes[this.#space] : this.#offset + rows * ROW_BYTES;
    this.show(this.#space, target, this.#mark);
  }

  async #draw(): Promise<void> {
    const turn = ++this.#turn;
    const offset = this.#offset;
    const length = Math.min(ROWS * ROW_BYTES, this.#sizes[this.#space] - offset);
    let bytes: Uint8Array;
    try {
      bytes = length > 0 ? await this.#read(this.#space, offset, length) : new Uint8Array();
    } catch (error) {
      if (turn === this.#turn) this.#body.textContent = (error as Error).message;
      return;
    }
    if (turn !== this.#turn) return;
    const rows = document.createDocumentFragment();
    for (let row = 0; row < bytes.length; row += ROW_BYTES) {
      const line = element("span", { class: "row" }, element("span", { class: "at", text: `${hex(offset + row, 8)}  ` }));
      let text = "";
      for (let at = row; at < row + ROW_BYTES; at++) {
        const byte = bytes[at];
        const place = offset + at;
        const marked = this.#mark && place >= this.#mark.offset && place < this.#mark.offset + this.#mark.length;
        const shown = byte === undefined ? "   " : `${hex(byte, 2)} `;
        line.append(marked ? element("mark", { text: shown }) : shown);
        text += byte === undefined ? " " : byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·";
      }
      line.append(element("span", { class: "text", text: ` ${text}\n` }));
      rows.append(line);
    }
    this.#body.replaceChildren(rows);
  }
}

customElements.define("hex-view", HexView);
