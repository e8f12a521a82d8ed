// Numbers for people, and elements without fuss.

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit + 1 < UNITS.length) {
    value /= 1024;
    unit++;
  }
  return `${Number(value.toPrecision(4))} ${UNITS[unit]}`;
}

/** A whole number in groups of three digits. The first number that `toLocaleString` writes takes 20 ms and more. */
export function grouped(number: number): string {
  return String(number).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** `1,048,576 bytes`. */
export function exactly(bytes: number): string {
  return `${grouped(bytes)} bytes`;
}

export function hex(number: number, digits = 0): string {
  return number.toString(16).padStart(digits, "0");
}

/** `0x10000`. */
export function offset(number: number): string {
  return `0x${hex(number)}`;
}

/** A whole number as a person writes it, in decimal or after `0x`; nothing if it is none. */
export function wholeNumber(text: string | null): number | undefined {
  const value = text === null || text.trim() === "" ? NaN : Number(text);
  return Number.isSafeInteger(value) && value >= 0 ? value : undefined;
}

/** A share, never rounded to nothing or to everything. */
export function percent(part: number, whole: number): string {
  if (whole === 0 || part === 0) return "0 %";
  if (part === whole) return "100 %";
  const share = (part / whole) * 100;
  return share < 0.1 ? "< 0.1 %" : share > 99.9 ? "> 99.9 %" : `${share.toFixed(1)} %`;
}

interface Options {
  class?: string;
  text?: string;
  title?: string;
}

/** An element with a class, a text and children. */
export function element<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  options: Options = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  if (options.class) made.className = options.class;
  if (options.text !== undefined) made.textContent = options.text;
  if (options.title) made.title = options.title;
  made.append(...children);
  return made;
}

export function button(text: string, act: () => void, style = ""): HTMLButtonElement {
  const made = element("button", { text, class: style });
  made.type = "button";
  made.onclick = act;
  return made;
}
