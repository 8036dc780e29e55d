// What went wrong, in one line, with a button that tries again.

import { Problem } from "./api.js";
import { byId } from "./dom.js";

const TOLD = 8000; // milliseconds

let again = () => {};
let timer = 0;
let fading = 0;

/** Listens for the button, and for the network's return. */
export function watch() {
  byId("trouble").querySelector("button").addEventListener("click", retry);
  addEventListener("online", retry);
}

/**
 * @param {unknown} error
 * @param {(() => void)|null} [work] what to try again; none where the same would only happen again
 */
export function show(error, work = null) {
  const problem = error instanceof Problem ? error : new Problem(-1, "The page failed at this");
  if (problem.status === -1) console.error(error);
  const box = byId("trouble");
  box.querySelector("p").textContent = problem.line;
  box.querySelector("button").hidden = !work;
  box.hidden = false;
  again = work ?? (() => {});
  clearTimeout(timer);
  if (work && [429, 503].includes(problem.status)) timer = setTimeout(retry, 1000 * Math.min(60, problem.wait || 5));
}

/** There is no trouble any more. */
export function hide() {
  clearTimeout(timer);
  byId("trouble").hidden = true;
}

/** Does again what went wrong, if anything did. */
export function retry() {
  if (byId("trouble").hidden) return;
  hide();
  again();
}

/** Says for a while what is no error, but not what one expects. @param {string} text */
export function tell(text) {
  const line = byId("told");
  line.hidden = false; // first: only what changes in sight is read out
  line.textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => (line.hidden = true), TOLD);
}
