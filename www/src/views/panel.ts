// What views are made of.

import { element } from "../format";

/** A panel with a heading. */
export function section(title: string, ...children: (Node | string)[]): HTMLElement {
  return element("section", {}, element("h3", { text: title }), ...children);
}

/** Gives an element a name, so that tests and links find it. */
export function named<E extends HTMLElement>(id: string, made: E): E {
  made.id = id;
  return made;
}

export function warning(title: string, advice: string, ...acts: HTMLElement[]): HTMLElement {
  return element("div", { class: "warning" }, element("p", {}, element("strong", { text: title }), ` ${advice}`), ...acts);
}

/** Fills a list, or says that there is nothing for it. */
export function fill(list: HTMLElement, items: HTMLElement[], none: string): void {
  list.replaceChildren(...(items.length > 0 ? items : [element("li", { class: "quiet", text: none })]));
}

/** A line that says how things are. */
export interface StatusLine {
  readonly element: HTMLElement;
  /** Says something that is read out. */
  tell(text: string, style?: string): void;
  /** Says how far work is. It is seen, and not read out each time it changes. */
  progress(text: string): void;
}

export function statusLine(id: string, style = ""): StatusLine {
  const line = named(id, element("p", { class: style }));
  line.setAttribute("role", "status");
  const say = (text: string, busy: boolean, look: string): void => {
    line.ariaBusy = String(busy);
    [line.textContent, line.className] = [text, `${style} ${look}`.trim()];
  };
  return {
    element: line,
    tell: (text, look = "") => say(text, false, look),
    progress: (text) => say(text, true, ""),
  };
}
