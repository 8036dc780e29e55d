// Which library is searched, by which model.

import { byId, el } from "./dom.js";
import { counted } from "./words.js";

/** @typedef {import("./api.js").LibraryFacts} LibraryFacts */

/**
 * The last part of where a model came from, of a run its folder; the whole stands in the title.
 * @param {string} model
 */
const short = (model) =>
  model
    .replace(/[/\\]+((model|last)[/\\]*)?$/, "")
    .split(/[/\\]/)
    .pop() || model;

/** @param {LibraryFacts} library */
const facts = ({ model, dims, pictures }) => `${short(model)} · ${dims}-d · ${counted(pictures, "picture")}`;

/**
 * Shows the libraries that there are, and lets one be chosen where there are several.
 * @param {LibraryFacts[]} all
 * @param {(name: string) => void} choose
 */
export function draw(all, choose) {
  const box = byId("libraries");
  if (all.length < 2) {
    box.replaceChildren(el("span", { class: "name", dir: "auto" }, all[0]?.name ?? ""), el("span", { class: "model" }));
    return;
  }
  const select = el("select", {
    id: "library",
    "aria-label": "Library and model",
    on: { change: () => choose(select.value) },
  });
  // In the open list every library tells its model; closed, the line below does.
  select.append(...all.map((one) => el("option", { value: one.name }, `${one.name} (${facts(one)})`)));
  const name = el("span", { class: "name", dir: "auto", "aria-hidden": "true" });
  box.replaceChildren(el("span", { class: "chosen" }, name, select), el("span", { class: "model" }));
}

/** @param {LibraryFacts} library the one that is searched now */
export function mark(library) {
  const box = byId("libraries");
  const select = box.querySelector("select");
  if (select) select.value = library.name;
  box.querySelector(".name").textContent = library.name;
  const line = box.querySelector(".model");
  line.textContent = facts(library);
  line.title = `${library.model}, ${library.dims} dimensions, run by ${library.engine}`;
}
