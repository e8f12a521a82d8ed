// Whether the metadata holds together. Problems lead to their bytes, and are marked on a picture of the file.

import type { CheckReport } from "diskette";

import type { App, Current, View } from "../app";
import { explain } from "../advice";
import { button, element, grouped } from "../format";
import { ask } from "../rpc";
import { named } from "./panel";

/** Findings shown at most; the counts cover all. */
const MAX_FINDINGS = 200;
const STRIP_HEIGHT = 26;

interface Spot {
  offset: number;
  length: number;
  bad: boolean;
}

export function checkView(app: App): View {
  const heading = named("check-title", element("h3", { text: "Check" }));
  heading.tabIndex = -1;
  const summary = named("check-summary", element("p"));
  const advice = named("check-advice", element("p", { class: "quiet" }));
  const findings = named("findings", element("ul", { class: "plain" }));
  findings.ariaLabel = "Findings";
  const strip = element("canvas", { class: "spots" });
  const about = element("p", { class: "caption", text: "The file from its start to its end, with what was found in it." });
  const verdict = document.getElementById("verdict") as HTMLElement;
  let spots: Spot[] = [];
  let fileSize = 0;

  /** The outcome in a word or two, beside the name of the image. */
  function judge(text: string, style: string): void {
    [verdict.textContent, verdict.className, verdict.hidden] = [text, `badge ${style}`, text === ""];
  }

  const go = ({ offset, length }: { offset: number; length: number }): void => app.go({ view: "data", space: 0, at: offset, length });

  /** A text in which offsets and clusters that are in the file are buttons. */
  function linked(text: string, clusterSize: number): (Node | string)[] {
    return text.split(/((?<!size )\b0x[0-9a-f]+\b|\bcluster \d+\b)/i).map((part, index) => {
      if (index % 2 === 0) return part;
      const place = spotIn(part, clusterSize);
      return place && place.offset < fileSize ? button(part, () => go(place), "link") : part;
    });
  }

  function spotIn(part: string, clusterSize: number): { offset: number; length: number } | undefined {
    const cluster = /^cluster (\d+)$/i.exec(part);
    const [offset, length] = cluster ? [Number(cluster[1]) * clusterSize, clusterSize] : [Number(part), 8];
    return Number.isSafeInteger(offset) ? { offset, length } : undefined;
  }

  function show(report: CheckReport, clusterSize: number): void {
    const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters, fragmentedClusters, compressedClusters } = report;
    const count = (number: number, one: string, many: string): string => `${grouped(number)} ${number === 1 ? one : many}`;
    const problems = [
      [corruptions, count(corruptions, "corruption", "corruptions")] as const,
      [leaks, count(leaks, "leaked cluster", "leaked clusters")] as const,
      [checkErrors, count(checkErrors, "place that could not be checked", "places that could not be checked")] as const,
    ].filter(([number]) => number > 0);
    summary.className = problems.length === 0 ? "good" : corruptions > 0 ? "bad" : "";
    judge(problems[0]?.[1] ?? "no errors", problems.length === 0 ? "good" : corruptions > 0 ? "bad" : "warn");
    summary.textContent =
      problems.length === 0
        ? `No errors. ${count(allocatedClusters, "cluster is", "clusters are")} allocated of ${grouped(totalClusters)}, ${fragmentedClusters} fragmented, ${compressedClusters} compressed.`
        : `${problems.map(([, text]) => text).join(", ")}.`;
    if (corruptions > 0) advice.textContent = "Data may be lost or mixed up. Copy the file first; then diskette check -r all may repair the copy.";
    else if (leaks > 0) advice.textContent = "Leaks waste space and do no other harm. A repair of leaks gives the space back.";
    const shown = report.findings.slice(0, MAX_FINDINGS);
    findings.replaceChildren(...shown.map((finding) => element("li", {}, ...linked(finding.text, clusterSize))));
    // The list scrolls, and may have nothing in it that takes the focus.
    if (report.findings.length > 0) findings.tabIndex = 0;
    const rest = corruptions + leaks + checkErrors - Math.min(MAX_FINDINGS, report.findings.length);
    if (rest > 0) findings.append(element("li", { class: "quiet", text: `and ${grouped(rest)} more` }));
    spots = report.findings.flatMap(({ kind, text }) => {
      const first = /(?<!size )\b0x[0-9a-f]+\b|\bcluster \d+\b/i.exec(text)?.[0];
      const place = first === undefined ? undefined : spotIn(first, clusterSize);
      return place && place.offset < fileSize ? [{ ...place, bad: kind !== "leak" }] : [];
    });
    draw();
  }

  function draw(): void {
    const width = strip.parentElement?.clientWidth ?? 0;
    strip.hidden = about.hidden = spots.length === 0;
    if (spots.length === 0 || width === 0) return;
    const ratio = devicePixelRatio || 1;
    [strip.width, strip.height] = [width * ratio, STRIP_HEIGHT * ratio];
    const context = strip.getContext("2d");
    if (!context) return;
    context.scale(ratio, ratio);
    const style = getComputedStyle(strip);
    context.fillStyle = style.getPropertyValue("--sunk");
    context.fillRect(0, 0, width, STRIP_HEIGHT);
    for (const { offset, length, bad } of spots) {
      context.fillStyle = style.getPropertyValue(bad ? "--bad" : "--warn-line");
      context.fillRect((offset / fileSize) * width, 2, Math.max(2, (length / fileSize) * width), STRIP_HEIGHT - 4);
    }
  }

  strip.setAttribute("aria-hidden", "true");
  strip.onclick = (event) => {
    const at = (event.offsetX / strip.clientWidth) * fileSize;
    const nearest = spots.reduce<Spot | undefined>((best, spot) => (!best || Math.abs(spot.offset - at) < Math.abs(best.offset - at) ? spot : best), undefined);
    if (nearest) go(nearest);
  };
  new ResizeObserver(draw).observe(strip);

  async function check(current: Current): Promise<void> {
    findings.replaceChildren();
    findings.removeAttribute("tabindex");
    [summary.className, advice.textContent] = ["", ""];
    summary.textContent = "Checking the metadata…";
    spots = [];
    strip.hidden = about.hidden = true;
    judge("checking…", "");
    const report = await ask("check", null).catch((error: Error & { kind?: string }) => error);
    if (app.current !== current) return;
    if (!(report instanceof Error)) return show(report, current.opened.info.clusterSize ?? 1);
    const unsupported = report.kind === "unsupported";
    summary.textContent = unsupported ? "This format has no metadata to check." : explain(report);
    judge(unsupported ? "" : "could not be checked", "bad");
  }

  return {
    name: "check",
    title: "Check",
    element: element("div", {}, element("section", {}, heading, summary, advice, strip, about, findings)),
    opened(current) {
      fileSize = current.opened.files[0]?.size ?? 0;
      void check(current);
    },
    shown: draw,
  };
}
