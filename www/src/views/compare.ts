// Two images side by side: whether their disks hold the same bytes, and where not.

import { type App, type Current, type View } from "../app";
import { explain, refusesPassphrase } from "../advice";
import { button, element, exactly, grouped, offset, percent, size } from "../format";
import { baseName } from "../paths";
import { given } from "../openers";
import type { Comparison, Opening } from "../protocol";
import { type InspectorError, ask } from "../rpc";
import { HexView } from "../widgets/hex-view";
import { MapView, type Picture } from "../widgets/map-view";
import { Runs } from "../widgets/runs";
import { named, statusLine } from "./panel";

const KINDS = [
  { name: "different", meaning: "the two disks hold different bytes here" },
  { name: "alike", meaning: "the two disks hold the same bytes here" },
];

/** Differences listed at most. */
const MAX_LISTED = 200;

class Differences extends Runs implements Picture {
  readonly kinds = KINDS;

  constructor(total: number) {
    super(total, KINDS.length, 3);
  }

  /** Takes ranges that differ, up to which everything else is alike. */
  append(ranges: Float64Array, end: number): void {
    const columns: number[] = [];
    let at = this.end;
    for (let index = 0; index < ranges.length; index += 2) {
      const [start, length] = [ranges[index] as number, ranges[index + 1] as number];
      if (start > at) columns.push(at, start - at, 1);
      columns.push(start, length, 0);
      at = start + length;
    }
    if (end > at) columns.push(at, end - at, 1);
    this.add(Float64Array.from(columns), Math.max(end, at));
  }

  protected kindAt(at: number): number {
    return this.columns[at + 2] as number;
  }

  describe(at: number): string | undefined {
    const run = this.runAt(at);
    const kind = run && KINDS[run.kind];
    return kind && `${offset(run.start)} to ${offset(run.start + run.length - 1)}, ${size(run.length)}: ${kind.meaning}.`;
  }
}

export function compareView(app: App): View {
  const say = statusLine("compare-summary");
  const input = named("compare-files", element("input"));
  input.type = "file";
  input.multiple = true;
  const picture = new MapView("comparison");
  const list = named("differences", element("ul", { class: "plain" }));
  list.ariaLabel = "Differences";
  const [left, right] = [new HexView(), new HexView()];
  const outcome = element(
    "div",
    {},
    element("section", {}, element("h3", { text: "Where they differ" }), picture, list),
    element("div", { class: "sides" }, element("section", {}, element("h3", { text: "This image" }), left), element("section", {}, element("h3", { text: "The other" }), right)),
  );
  let running: AbortController | undefined;
  const stop = button("Stop", () => running?.abort(), "second");
  outcome.hidden = stop.hidden = true;
  let model = new Differences(0);

  const go = (at: number, length?: number): void => {
    const mark = length === undefined ? undefined : { offset: at, length };
    left.show("disk", at, mark);
    right.show("disk", at, mark);
  };
  picture.onpick = (at) => {
    const run = model.runAt(at);
    go(run?.kind === 0 ? run.start : at, run?.kind === 0 ? run.length : undefined);
    left.scrollIntoView({ block: "nearest" });
  };
  left.onmove = (_, at) => right.show("disk", at);

  function conclude(shown: Current, { name, size: other, differing, count, missing }: Comparison): void {
    const own = shown.opened.info.virtualSize;
    const sizes = own === other ? "" : ` The disks are of different sizes: ${exactly(own)} and ${exactly(other)}; what only one has is compared with zeroes.`;
    const absent = missing.length > 0 ? ` ${missing.map((file) => file.name).join(", ")} is missing.` : "";
    const places = `${grouped(count)} ${count === 1 ? "place differs" : "places differ"}, ${size(differing)} in all (${percent(differing, Math.max(own, other))})`;
    if (differing === 0) say.tell(`Every byte of the disk is alike in ${baseName(name)}.${sizes}${absent}`, "good");
    else say.tell(`${places}.${sizes}${absent}`);
  }

  async function compare(shown: Current, opening: Opening): Promise<void> {
    asked = opening;
    const focused = unlock.contains(document.activeElement);
    unlock.hidden = true;
    running?.abort();
    const own = (running = new AbortController());
    const begin = (other: number): void => {
      model = new Differences(Math.max(shown.opened.info.virtualSize, other));
      picture.reset(model);
    };
    begin(0);
    list.replaceChildren();
    outcome.hidden = true;
    stop.hidden = false;
    if (focused) stop.focus();
    say.tell("Comparing…");
    try {
      const result = await ask("compare", { opening }, {
        signal: own.signal,
        part({ done, total, ranges }) {
          if (app.current !== shown || running !== own) return;
          if (model.total !== total) begin(total);
          model.append(ranges, done);
          for (let at = 0; at < ranges.length && list.childElementCount < MAX_LISTED; at += 2) {
            const [start, length] = [ranges[at] as number, ranges[at + 1] as number];
            list.append(element("li", {}, button(offset(start), () => go(start, length), "link mono"), ` ${size(length)}`));
          }
          picture.update();
          outcome.hidden = false;
          say.progress(`Compared ${size(done)} of ${size(total)}.`);
        },
      });
      if (app.current !== shown || running !== own) return;
      picture.update(true);
      const disk = (label: string, bytes: number) => [{ space: "disk" as const, label, size: bytes }];
      left.setup(disk(baseName(shown.opened.name), shown.opened.info.virtualSize), (space, at, length) => ask("read", { space, offset: at, length }));
      right.setup(disk(baseName(result.name), result.size), (_, at, length) => ask("read-other", { offset: at, length }));
      conclude(shown, result);
      if (list.childElementCount > 0) list.tabIndex = 0;
      else list.removeAttribute("tabindex");
      (list.querySelector("button") as HTMLButtonElement | null)?.click();
    } catch (error) {
      if (running !== own) return;
      const { kind, message } = error as InspectorError;
      unlock.hidden = kind !== "locked" && !(opening.wish.passphrase && refusesPassphrase({ message }));
      if (!unlock.hidden && kind === "locked") return say.tell(message);
      say.tell(own.signal.aborted ? "Stopped." : explain(error), own.signal.aborted ? "" : "bad");
    } finally {
      if (running === own) {
        const waited = document.activeElement === stop;
        stop.hidden = true;
        if (waited) (unlock.hidden ? panel : passphrase).focus({ preventScroll: true });
      }
    }
  }

  /** The other image as it was asked for last. */
  let asked: Opening | undefined;
  const begin = (opening: Opening): void => {
    if (app.current) void compare(app.current, opening);
  };

  input.onchange = () => {
    if (input.files?.length) begin({ from: "files", files: given(input.files), wish: {} });
    // The same files can be chosen again: they may have changed.
    input.value = "";
  };
  const url = named("compare-url", element("input"));
  [url.type, url.required, url.placeholder, url.spellcheck, url.autocomplete] = ["url", true, "https://…/disk.qcow2", false, "off"];
  const there = element("form", { class: "row" }, element("label", { class: "field" }, element("span", { text: "… or at an address" }), url), element("button", { text: "Compare" }));
  there.onsubmit = (event) => {
    event.preventDefault();
    begin({ from: "url", url: url.value.trim(), follow: false, wish: {} });
  };
  const served = named("compare-served", element("div", { class: "bar" }));
  const passphrase = element("input");
  [passphrase.type, passphrase.autocomplete, passphrase.placeholder, passphrase.ariaLabel] = ["password", "off", "Passphrase", "Passphrase of the other image"];
  const unlock = named("compare-unlock", element("form", { class: "row" }, passphrase, element("button", { text: "Unlock and compare" })));
  unlock.onsubmit = (event) => {
    event.preventDefault();
    if (asked && passphrase.value !== "") begin({ ...asked, wish: { ...asked.wish, passphrase: passphrase.value } });
  };

  const files = element("label", { class: "field" }, element("span", { text: "Compare this disk with the one in a file …" }), input);
  const panel = element("div", {}, element("section", {}, element("div", { class: "fields" }, files, there), served, unlock, element("div", { class: "bar" }, say.element, stop)), outcome);
  return {
    name: "compare",
    title: "Compare",
    element: panel,
    opened({ opening }) {
      running?.abort();
      running = asked = undefined;
      [input.value, passphrase.value] = ["", ""];
      say.tell("Choose an image, together with the backing files it names. Any two formats will do.", "quiet");
      outcome.hidden = stop.hidden = unlock.hidden = true;
      const others = app.served.filter((image) => !(opening.from === "url" && image.opening.from === "url" && image.opening.url === opening.url));
      served.hidden = others.length === 0;
      served.replaceChildren("Also served here:", ...others.map((image) => button(image.name, () => begin(image.opening), "link")));
    },
  };
}
