// <tree-view>: a tree of any size, of which only what is unfolded is loaded, a page at a time.

import { element, grouped } from "../format";

/** Items loaded at once. */
const PAGE = 64;

export interface TreeSource<Item> {
  load(path: number[], from: number, count: number): Promise<{ total: number; items: Item[] }>;
  /** How many items are in one. */
  children(item: Item): number;
  /** What is shown of an item. */
  label(item: Item, index: number): (Node | string)[];
}

interface Branch<Item> {
  item: Item | undefined;
  path: number[];
  row: HTMLElement;
  group: HTMLUListElement;
  above: Branch<Item> | undefined;
  /** Those that are loaded: indices from `from` on. */
  from: number;
  below: Branch<Item>[];
  total: number;
  open: boolean;
}

export class TreeView<Item = unknown> extends HTMLElement {
  #source: TreeSource<Item> | undefined;
  #root: Branch<Item> | undefined;
  #current: Branch<Item> | undefined;
  #turn = 0;
  /** An item was chosen. */
  onchoose: (item: Item, path: number[]) => void = () => {};
  onfail: (error: Error) => void = () => {};

  connectedCallback(): void {
    this.setAttribute("role", "tree");
    this.onkeydown = (event) => void this.#key(event);
  }

  /** Shows a tree from its root. */
  async show(source: TreeSource<Item>): Promise<void> {
    this.#turn++;
    this.#source = source;
    const group = element("ul", { class: "plain" });
    group.setAttribute("role", "presentation");
    this.#root = { item: undefined, path: [], row: this, group, above: undefined, from: 0, below: [], total: 0, open: true };
    this.#current = undefined;
    this.replaceChildren(group);
    await this.#fill(this.#root, 0);
    const first = this.#root.below[0];
    if (first) this.#choose(first, false);
  }

  /** The items that are loaded, with their paths. */
  *loaded(): Generator<{ item: Item; path: number[] }, void, void> {
    const stack = this.#root ? [this.#root] : [];
    for (let branch = stack.pop(); branch; branch = stack.pop()) {
      if (branch.item !== undefined) yield { item: branch.item, path: branch.path };
      stack.push(...branch.below);
    }
  }

  /** Unfolds the way to an item, and chooses it. */
  async reveal(path: number[]): Promise<void> {
    let branch = this.#root;
    for (const index of path) {
      if (!branch) return;
      if (!branch.open) await this.#unfold(branch);
      if (index < branch.from || index >= branch.from + branch.below.length) await this.#fill(branch, index - (index % PAGE));
      branch = branch.below[index - branch.from];
    }
    if (branch && branch !== this.#root) this.#choose(branch, true);
  }

  /** Loads a page of a branch in place of what it shows. */
  async #fill(branch: Branch<Item>, from: number): Promise<void> {
    branch.from = from;
    branch.below = [];
    branch.group.replaceChildren();
    await this.#more(branch, from, false);
  }

  /** Loads a page before or behind what a branch shows. */
  async #more(branch: Branch<Item>, from: number, before: boolean): Promise<void> {
    const turn = this.#turn;
    const source = this.#source;
    if (!source) return;
    let page: { total: number; items: Item[] };
    try {
      page = await source.load(branch.path, from, PAGE);
    } catch (error) {
      if (turn === this.#turn) this.onfail(error as Error);
      return;
    }
    if (turn !== this.#turn) return;
    branch.total = page.total;
    const made = page.items.map((item, index) => this.#branch(source, branch, item, from + index));
    branch.below = before ? [...made, ...branch.below] : [...branch.below, ...made];
    if (before) branch.from = from;
    const end = branch.from + branch.below.length;
    const list: HTMLElement[] = branch.below.map(({ row }) => row);
    if (branch.from > 0) list.unshift(this.#rest(`${grouped(branch.from)} before`, () => this.#more(branch, Math.max(0, branch.from - PAGE), true)));
    if (end < page.total) list.push(this.#rest(`${grouped(page.total - end)} more`, () => this.#more(branch, end, false)));
    const focused = branch.group.contains(document.activeElement);
    branch.group.replaceChildren(...list);
    // The row that was asked for more is gone; the first one that came takes the focus.
    const first = made[0];
    if (focused && first) return this.#choose(first, true);
    if (this.#current && !this.#current.row.isConnected && branch.below[0]) this.#choose(branch.below[0], false);
  }

  #rest(text: string, load: () => Promise<void>): HTMLElement {
    const row = element("li", { class: "rest" }, element("span", { class: "label", text }));
    row.setAttribute("role", "treeitem");
    row.tabIndex = -1;
    row.onclick = (event) => {
      event.stopPropagation();
      void load();
    };
    row.onkeydown = (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      event.stopPropagation();
      void load();
    };
    return row;
  }

  #branch(source: TreeSource<Item>, above: Branch<Item>, item: Item, index: number): Branch<Item> {
    const group = element("ul", { class: "plain" });
    group.setAttribute("role", "group");
    group.hidden = true;
    const label = element("span", { class: "label" }, ...source.label(item, index));
    const row = element("li", {}, label);
    row.setAttribute("role", "treeitem");
    row.tabIndex = -1;
    const branch: Branch<Item> = { item, path: [...above.path, index], row, group, above, from: 0, below: [], total: source.children(item), open: false };
    if (branch.total > 0) {
      row.setAttribute("aria-expanded", "false");
      row.append(group);
    }
    label.onclick = (event) => {
      event.stopPropagation();
      this.#choose(branch, true);
      // The triangle is the first bit of the label.
      if (branch.total > 0 && event.offsetX < 20) void this.#toggle(branch);
    };
    label.ondblclick = () => void this.#toggle(branch);
    return branch;
  }

  async #toggle(branch: Branch<Item>): Promise<void> {
    if (branch.open) this.#fold(branch);
    else await this.#unfold(branch);
  }

  async #unfold(branch: Branch<Item>): Promise<void> {
    if (branch.total === 0) return;
    branch.open = true;
    branch.row.setAttribute("aria-expanded", "true");
    branch.group.hidden = false;
    if (branch.below.length === 0) await this.#fill(branch, 0);
  }

  #fold(branch: Branch<Item>): void {
    branch.open = false;
    branch.row.setAttribute("aria-expanded", "false");
    branch.group.hidden = true;
  }

  #choose(branch: Branch<Item>, focus: boolean): void {
    for (const old of this.querySelectorAll('[tabindex="0"]')) (old as HTMLElement).tabIndex = -1;
    this.#current?.row.removeAttribute("aria-selected");
    this.#current = branch;
    branch.row.tabIndex = 0;
    branch.row.setAttribute("aria-selected", "true");
    if (focus) {
      branch.row.focus({ preventScroll: true });
      (branch.row.firstElementChild as HTMLElement).scrollIntoView({ block: "nearest" });
    }
    if (branch.item !== undefined) this.onchoose(branch.item, branch.path);
  }

  /** Rows that can be seen, top to bottom. */
  #rows(): HTMLElement[] {
    return [...this.querySelectorAll<HTMLElement>('[role="treeitem"]')].filter((row) => row.offsetParent !== null);
  }

  async #key(event: KeyboardEvent): Promise<void> {
    const here = (event.target as HTMLElement).closest<HTMLElement>('[role="treeitem"]');
    if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
    const branch = this.#find(here);
    const rows = this.#rows();
    const at = rows.indexOf(here);
    const acts: Record<string, () => unknown> = {
      ArrowDown: () => this.#focus(rows[at + 1]),
      ArrowUp: () => this.#focus(rows[at - 1]),
      Home: () => this.#focus(rows[0]),
      End: () => this.#focus(rows.at(-1)),
      ArrowRight: () => (branch?.open ? this.#focus(rows[at + 1]) : branch && this.#unfold(branch)),
      ArrowLeft: () => (branch?.open ? this.#fold(branch) : branch?.above && branch.above !== this.#root && this.#choose(branch.above, true)),
      Enter: () => branch && this.#toggle(branch),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    await act();
  }

  #focus(row: HTMLElement | undefined): void {
    if (!row) return;
    const branch = this.#find(row);
    if (branch) return this.#choose(branch, true);
    for (const old of this.querySelectorAll('[tabindex="0"]')) (old as HTMLElement).tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
  }

  #find(row: HTMLElement): Branch<Item> | undefined {
    const stack = this.#root ? [...this.#root.below] : [];
    for (let branch = stack.pop(); branch; branch = stack.pop()) {
      if (branch.row === row) return branch;
      if (branch.row.contains(row)) stack.push(...branch.below);
    }
    return undefined;
  }
}

customElements.define("tree-view", TreeView);
