// Two images side by side: whether their disks hold the same bytes, and where not.

import { type App, type Current, type View } from "../app";
import { explain } from "../advice";
import { button, element, exactly, offset, percent, size } from "../format";
import { baseName } from "../paths";
import type { Comparison } from "../protocol";
import { ask } from "../rpc";
import { HexView } from "../widgets/hex-view";
import { MapView, type Picture } from "../widgets/map-view";
import { Runs } from "../widgets/runs";
import { named } from "./panel";

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
  const say = named("compare-summary", element("p"));
  say.setAttribute("role", "status");
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
    say.className = differing === 0 ? "good" : "";
    say.textContent =
      differing === 0
        ? `Every byte of the disk is alike in ${baseName(name)}.${sizes}${absent}`
        : `${count.toLocaleString("en")} ${count === 1 ? "place differs" : "places differ"}, ${size(differing)} in all (${percent(differing, Math.max(own, other))}).${sizes}${absent}`;
  }

  async function compare(shown: Current, files: File[]): Promise<void> {
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
    [say.textContent, say.className] = ["Comparing…", ""];
    try {
      const result = await ask("compare", { opening: { from: "files", files: files.map((file) => ({ file })), wish: {} } }, {
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
          say.textContent = `Compared ${size(done)} of ${size(total)}.`;
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
      [say.textContent, say.className] = [own.signal.aborted ? "Stopped." : explain(error), own.signal.aborted ? "" : "bad"];
    } finally {
      if (running === own) stop.hidden = true;
    }
  }

  input.onchange = () => {
    if (app.current && input.files?.length) void compare(app.current, [...input.files]);
  };
  const label = element("label", { text: "Compare this disk with the one in " }, input);
  return {
    name: "compare",
    title: "Compare",
    element: element("div", {}, element("section", {}, element("p", {}, label, " ", stop), say), outcome),
    opened() {
      running?.abort();
      running = undefined;
      [say.textContent, say.className, input.value] = ["Choose an image, together with the backing files it names. Any two formats will do.", "quiet", ""];
      outcome.hidden = stop.hidden = true;
    },
  };
}
