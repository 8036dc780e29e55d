// One picture of the grid.

import { el, icon, plainly } from "./dom.js";
import { address } from "./state.js";
import { thumb } from "./thumbs.js";
import { date, fit, seen } from "./words.js";

/** What a dragged picture is called among the kinds of data that are dragged. */
export const DRAGGED = "application/x-cliplet-picture";

/**
 * @param {import("./api.js").Hit} hit
 * @param {import("./state.js").State} state
 * @param {{open: (id: string, from: HTMLElement) => void, like: (id: string) => void}} actions
 * @param {HTMLElement|null} [before] the cell of the same picture among what was shown before
 * @returns {HTMLElement} a cell of the grid
 */
export function tile(hit, state, { open, like }, before = null) {
  const name = seen(hit.name);
  const image = thumb(state.library, hit, before?.querySelector("img"));
  const facts = [
    name,
    hit.caption && `“${seen(hit.caption)}”`,
    hit.fit !== null && `fit ${fit(hit.fit)}`,
    hit.taken && date(hit.taken),
    hit.copies > 0 && `${hit.copies + 1} files`,
  ].filter(Boolean);
  const link = el(
    "a",
    {
      class: "shot",
      href: address({ ...state, picture: hit.id }),
      "aria-label": facts.join(", "),
      "aria-keyshortcuts": "m",
      on: {
        click: plainly((from) => open(hit.id, from)),
        dragstart: (event) => event.dataTransfer?.setData(DRAGGED, hit.id),
      },
    },
    image,
    el(
      "span",
      { class: "over", "aria-hidden": "true" },
      el("bdi", {}, hit.caption ? seen(hit.caption) : name),
      hit.fit !== null && el("span", { class: "number" }, `fit ${fit(hit.fit)}`),
    ),
    hit.copies > 0 && el("span", { class: "copies", "aria-hidden": "true" }, `×${hit.copies + 1}`),
  );
  const more = el(
    "button",
    {
      type: "button",
      class: "square glass like",
      title: "More like this (m)",
      "aria-label": `More like ${name}`,
      on: { click: () => like(hit.id) },
    },
    icon("like"),
  );
  const cell = el("div", { class: "tile", role: "gridcell" }, link, more);
  if (image.complete && image.naturalWidth) cell.classList.add("there", "at-once");
  return cell;
}
