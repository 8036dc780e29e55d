// Scores as bars.

import { el } from "./dom.js";
import { cosine, fit } from "./words.js";

/** What the numbers mean. */
const MEANING = {
  fit: "Fit: of a hundred everyday queries, so many have no picture in the library that is as close to them.",
  captions: "Fit: of a hundred everyday queries, so many are less close to the picture than the caption is.",
  score: "Cosine: how close the model puts the two, from −1 to 1. Bars are drawn from 0 to the best in the list.",
};

/**
 * Two bars, one under the other, with their numbers.
 * @param {{score: number, fit: number}} values
 * @param {number} best the cosine that fills a bar
 * @returns {HTMLElement}
 */
export function bars(values, best) {
  return el(
    "div",
    { class: "bars" },
    bar("fit", "Fit", values.fit / 100, fit(values.fit), 100, values.fit),
    bar("score", "Cosine", best > 0 ? values.score / best : 0, cosine(values.score), best, values.score),
  );
}

function bar(kind, label, part, text, most, value) {
  const filled = el("span", { class: "filled" });
  filled.style.width = `${100 * Math.min(1, Math.max(0, part))}%`;
  const meter = el(
    "span",
    {
      class: "meter",
      role: "meter",
      "aria-label": label,
      "aria-valuemin": 0,
      "aria-valuemax": Math.max(most, 0.001),
      "aria-valuenow": Math.max(0, value),
      "aria-valuetext": text,
    },
    filled,
  );
  return el(
    "div",
    { class: `bar ${kind}` },
    el("span", { class: "label", "aria-hidden": "true" }, label),
    meter,
    el("span", { class: "number", "aria-hidden": "true" }, text),
  );
}

/**
 * The best cosine of a list.
 * @param {{score: number|null}[]} list
 */
export const best = (list) => list.reduce((most, { score }) => Math.max(most, score ?? 0), 0);

/**
 * Explains both bars.
 * @param {"fit"|"captions"} [kind] what was ranked: pictures, or captions
 * @returns {HTMLElement}
 */
export const legend = (kind = "fit") =>
  el(
    "details",
    { class: "legend" },
    el("summary", {}, "What the bars mean"),
    el("p", {}, MEANING[kind]),
    el("p", {}, MEANING.score),
  );
