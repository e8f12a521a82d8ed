// The page: its views, the image that is open, and where the user is.

import type { App, Current, Place, View, ViewName } from "./app";
import { button, element } from "./format";
import { adviceFor, bytesCanBeShown, refusesPassphrase } from "./advice";
import { listenForImages, stopLooking } from "./openers";
import { baseName } from "./paths";
import type { Opening } from "./protocol";
import { type InspectorError, ask, onCrash } from "./rpc";
import { formatRoute, parseRoute } from "./route";
import { checkView } from "./views/check";
import { compareView } from "./views/compare";
import { contentsView } from "./views/contents";
import { convertView } from "./views/convert";
import { dataView } from "./views/data";
import { editView } from "./views/edit";
import { mapView } from "./views/map";
import { overviewView } from "./views/overview";
import { snapshotsView } from "./views/snapshots";
import { structureView } from "./views/structure";

const $ = <T extends HTMLElement = HTMLElement>(id: string): T => document.getElementById(id) as T;

const status = $("status");
const results = $("results");

/** Counts openings, so that answers about an image before are not shown for this one. */
let generation = 0;
let current: Current | undefined;
let place: Place = { view: "overview" };
/** The place is one that a link led to, and no image has been there yet. */
let linked = true;
/** The address follows the user no faster than this. */
const MARK_MILLISECONDS = 300;
let marking = 0;

const app: App = {
  get current() {
    return current;
  },
  served: [],
  go,
  mark,
  open: (opening) => open(opening),
  choose,
  complain,
};

const views: View[] = [overviewView, structureView, mapView, dataView, contentsView, checkView, snapshotsView, compareView, convertView, editView].map((make) => make(app));
const tabs = new Map<ViewName, HTMLButtonElement>();

for (const { name, title, element: panel } of views) {
  const tab = button(title, () => go({ view: name }));
  tab.id = `tab-${name}`;
  tab.setAttribute("role", "tab");
  tab.setAttribute("aria-controls", `view-${name}`);
  panel.id = `view-${name}`;
  panel.setAttribute("role", "tabpanel");
  panel.setAttribute("aria-labelledby", tab.id);
  panel.hidden = true;
  panel.tabIndex = -1;
  tabs.set(name, tab);
}
$("tabs").append(...tabs.values());
$("views").append(...views.map(({ element: panel }) => panel));

$("tabs").onkeydown = (event) => {
  const order = views.map(({ name }) => name);
  const here = order.indexOf(place.view);
  const steps: Record<string, number> = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: order.length - 1 };
  const step = steps[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const view = order[(step + order.length) % order.length] as ViewName;
  go({ view });
  tabs.get(view)?.focus();
};

function say(text: string, busy = false): void {
  status.className = "";
  status.ariaBusy = String(busy);
  status.replaceChildren(element("p", { text }));
}

function complain(error: unknown, opening?: Opening): void {
  const { message, kind = "", offset = null, operation = null } = error as Partial<InspectorError> & { message: string };
  status.className = "failed";
  status.ariaBusy = "false";
  const lead = current ? "That did not work: " : "It could not be opened: ";
  const parts: HTMLElement[] = [element("p", {}, element("strong", { text: lead }), message)];
  const advice = adviceFor(kind, operation);
  if (advice) parts.push(element("p", { text: advice }));
  if (opening && bytesCanBeShown(kind, operation)) {
    const look = async (): Promise<void> => {
      await open({ ...opening, wish: { format: "raw" } });
      go(offset === null ? { view: "data", space: 0 } : { view: "data", space: 0, at: offset, length: 4 });
    };
    parts.push(button("Show its bytes", () => void look()));
  }
  status.replaceChildren(...parts);
}

/** Opens an image. `within`: whoever opens it anew from a view goes on there. */
async function open(opening: Opening, within = results.contains(document.activeElement)): Promise<void> {
  const turn = ++generation;
  stopLooking();
  say("Opening…");
  results.hidden = true;
  $("choice").hidden = true;
  document.body.classList.remove("opened");
  current = undefined;
  const begun = performance.now();
  try {
    const opened = await ask("open", opening);
    if (turn !== generation) return;
    current = { opening, opened, layer: 0 };
    say(`${opened.name} opened in ${Math.max(1, Math.round(performance.now() - begun))} ms.`);
  } catch (error) {
    if (turn !== generation) return;
    if (opening.wish.passphrase === undefined) return complain(error, opening.wish.format ? undefined : opening);
    // What can be said of it without the passphrase is shown again, and another one can be tried.
    const { passphrase, ...wish } = opening.wish;
    await open({ ...opening, wish }, within);
    const { message, kind, operation = null } = error as InspectorError;
    return complain(refusesPassphrase({ message }) ? { message: `the passphrase does not open it: ${message}`, kind: "locked" } : { message, kind, operation });
  }
  results.hidden = false;
  document.body.classList.add("opened");
  const { name } = current.opened;
  document.title = `${baseName(name)} – diskette inspector`;
  $("title").textContent = name;
  for (const view of views) view.opened(current);
  // A link to a place is followed once there is an image to follow it in. The next image begins at the same view.
  go(linked ? place : { view: place.view });
  linked = false;
  if (within && document.activeElement === document.body) $(`view-${place.view}`).focus({ preventScroll: true });
}

function choose(layer: number): void {
  if (!current?.opened.info.chain[layer]) return;
  current.layer = layer;
  for (const view of views) view.chosen?.(current);
}

function address(next: Place): string {
  return formatRoute(next, current?.opening.from === "url" ? current.opening.url : undefined);
}

function mark(next: Place): void {
  if (!current || next.view !== place.view) return;
  place = next;
  // Browsers take only so many changes in a while.
  marking ||= window.setTimeout(() => {
    marking = 0;
    if (current) history.replaceState(null, "", address(place));
  }, MARK_MILLISECONDS);
}

/** Goes to a place; going to another view is a step that the browser can go back. */
function go(next: Place): void {
  const moved = next.view !== place.view;
  clearTimeout(marking);
  marking = 0;
  show(next);
  if (!current) return;
  if (moved) history.pushState(null, "", address(place));
  else history.replaceState(null, "", address(place));
}

/** Shows a place. */
function show(next: Place): void {
  const view = views.find(({ name }) => name === next.view) ?? (views[0] as View);
  place = { ...next, view: view.name };
  // Who follows a link from one view into another goes on there.
  const left = views.some(({ name, element: panel }) => name !== view.name && panel.contains(document.activeElement));
  for (const { name, element: panel } of views) {
    panel.hidden = name !== view.name;
    const tab = tabs.get(name) as HTMLButtonElement;
    tab.setAttribute("aria-selected", String(name === view.name));
    tab.tabIndex = name === view.name ? 0 : -1;
  }
  if (left) view.element.focus({ preventScroll: true });
  if (current) view.shown?.(place, current);
}

/** Another image by its address: it is read when the user says so. */
function offer(url: string): void {
  $<HTMLInputElement>("url").value = url;
  status.className = "";
  status.ariaBusy = "false";
  status.replaceChildren(
    element("p", { text: "This link is about an image at another place. It is read from there when you say so." }),
    button(`Open ${url}`, () => void open({ from: "url", url, follow: false, wish: {} })),
  );
}

/** Follows the address to where it leads. */
function follow(): void {
  const route = parseRoute(location.hash);
  const open = current?.opening.from === "url" ? current.opening.url : undefined;
  show(route.place);
  linked = current === undefined;
  if (route.url !== undefined && route.url !== open) offer(route.url);
}

window.addEventListener("popstate", follow);

$("verdict").onclick = () => {
  go({ view: "check" });
  $("check-title").focus();
};

follow();
onCrash((error) => complain(error));
listenForImages({ open, complain, say, serves: (images) => app.served.push(...images) });

// The page is kept for use without a network; under `diskette serve`, whose addresses live as long as it does, it is not.
const served = document.querySelector('meta[name="diskette-serve"]') !== null;
if ("serviceWorker" in navigator && !served && !import.meta.env.DEV) {
  void navigator.serviceWorker.register("./sw.js").catch(() => {
    // Without one the page works all the same, but not offline.
  });
}
