// What is known of a picture: its captions with their scores, and its columns.

import { bars, best, legend } from "./bars.js";
import { copy, el, icon } from "./dom.js";
import { bytes, date, place, seen, whole } from "./words.js";

/** @typedef {{name: string, path: string, folder: string, format: string, bytes: number, width: number, height: number,
 *   taken: string|null, latitude: number|null, longitude: number|null, camera: string|null, captions: string[],
 *   tags: string[], added: string}} Record */

/**
 * @param {{texts: import("./api.js").TextScore[], captions: import("./api.js").TextScore[]}} scores
 * @returns {Node[]}
 */
export function scoreLists(scores) {
  const most = best([...scores.texts, ...scores.captions]);
  const list = (title, entries) =>
    entries.length
      ? [
          el("h3", {}, title),
          el(
            "ul",
            { class: "scores" },
            ...entries.map((entry) => el("li", {}, el("p", { dir: "auto" }, seen(entry.text)), bars(entry, most))),
          ),
        ]
      : [];
  const parts = [...list("Searched for", scores.texts), ...list("Captions", scores.captions)];
  return parts.length ? [...parts, legend()] : [];
}

/**
 * @param {Record} record
 * @param {{near: (latitude: number, longitude: number) => void, tag: (tag: string) => void,
 *   copied: (done: boolean) => void}} actions
 * @returns {Node[]}
 */
export function factList(record, actions) {
  const megapixels = (record.width * record.height) / 1e6;
  const size = megapixels >= 0.95 ? ` (${megapixels.toFixed(1)} megapixels)` : "";
  const rows = [
    record.taken && ["Taken", date(record.taken)],
    record.latitude !== null && record.longitude !== null && ["Place", where(record, actions)],
    record.camera && ["Camera", el("bdi", {}, seen(record.camera))],
    ["Size", `${whole(record.width)} × ${whole(record.height)}${size}`],
    ["File", `${record.format.toUpperCase()}, ${bytes(record.bytes)}`],
    record.tags.length && ["Tags", tags(record, actions)],
    ["Path", path(record, actions)],
    record.added && ["Indexed", `${date(record.added)} UTC`],
  ];
  return [
    el("h3", {}, "Details"),
    el(
      "dl",
      { class: "facts" },
      ...rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    ),
  ];
}

function where({ latitude, longitude }, { near }) {
  return el(
    "span",
    {},
    place(latitude, longitude),
    " ",
    el(
      "button",
      { type: "button", class: "pill", on: { click: () => near(latitude, longitude) } },
      icon("place"),
      "Pictures near here",
    ),
  );
}

function tags(record, { tag }) {
  return el(
    "ul",
    { class: "tags" },
    ...record.tags.map((text) =>
      el(
        "li",
        {},
        el(
          "button",
          {
            type: "button",
            class: "pill",
            dir: "auto",
            title: "Pictures with this tag",
            on: { click: () => tag(text) },
          },
          seen(text),
        ),
      ),
    ),
  );
}

function path({ path: text }, { copied }) {
  const button = el(
    "button",
    {
      type: "button",
      class: "quiet square",
      title: "Copy the path",
      "aria-label": "Copy the path",
      on: { click: async () => copied(await copy(text, button)) },
    },
    icon("copy"),
  );
  return el("span", { class: "path" }, el("bdi", {}, seen(text)), button);
}
