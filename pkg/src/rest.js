// Gives the event loop a turn: sources that answer at once would let nobody else run, not even a timer that is to stop them.

/** Work goes on for so many milliseconds before others get their turn. */
const WORK_MILLISECONDS = 15;

const { performance } = globalThis;
/** Calls a function after the event loop had its turn. Timers of browsers are held back when they follow each other. */
const later = globalThis.setImmediate ?? (globalThis.MessageChannel ? messages() : globalThis.setTimeout);

function messages() {
  let port;
  return (step) => {
    if (!port) {
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = step;
      port = port2;
    }
    port.postMessage(null);
  };
}

/** When work began that the event loop has had no turn since; a step is due exactly while this is known. */
let since = null;
const resting = [];

function begin() {
  since = performance.now();
  later(step);
}

/** One that rests goes on at a time, so that each gets its share. */
function step() {
  since = null;
  const goOn = resting.shift();
  if (goOn) begin();
  goOn?.();
}

/** Whether it is time to rest. */
export function isTired() {
  if (since === null) begin();
  return performance.now() - since >= WORK_MILLISECONDS;
}

/** Calls `goOn` when the event loop had its turn. */
export function rest(goOn) {
  resting.push(goOn);
  if (since === null) begin();
}

/** Gives the event loop a turn if it is time for that, in work that asks no core for anything. */
export async function breathe() {
  if (isTired()) await new Promise(rest);
}
