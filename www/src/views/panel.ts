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
