// The filters: fields for what is asked most, and one for everything else.

import { byId, debounced, el, icon } from "./dom.js";
import { FILTERS } from "./state.js";
import { NEAR, coordinates, number, placed } from "./where.js";
import { seen } from "./words.js";

/** @typedef {import("./state.js").Filters} Filters */

const WAIT = 350; // milliseconds without a key before a field counts

/** What a filter in use is called. @type {Record<string, (value: string, all: Filters) => string|null>} */
const SAID = {
  from: (value) => number(value) && `from ${value}`,
  to: (value) => number(value) && `to ${value}`,
  width: (value) => number(value) && `${value} px wide or more`,
  height: (value) => number(value) && `${value} px high or more`,
  format: (value) => value.toUpperCase(),
  caption: (value) => `caption: ${value}`,
  tag: (value) => `tag: ${value}`,
  camera: (value) => `camera: ${value}`,
  near: (value, all) => (coordinates(value) ? `within ${all.km || NEAR} km of ${value}` : null),
  km: () => null,
  where: (value) => value,
  by: (value) => `by ${value}`,
};

export class FiltersPanel {
  /** @param {import("./state.js").Store} store */
  constructor(store) {
    this.store = store;
    this.panel = byId("filters");
    this.button = byId("filters-button");
    /** @type {Record<string, HTMLInputElement|HTMLSelectElement>} */
    this.fields = Object.fromEntries(FILTERS.map((name) => [name, byId(`filter-${name}`)]));
    this.by = byId("by");
    this.wrong = byId("where-wrong");
    this.drawn = "";
    this.soon = debounced(() => this.take(), WAIT);
    this.listen();
    store.listen((state) => this.show(state));
  }

  listen() {
    const close = () => {
      this.open(false);
      this.button.focus();
    };
    for (const field of Object.values(this.fields)) {
      field.addEventListener("input", () => this.soon());
      field.addEventListener("change", () => this.taken());
      field.addEventListener(
        "keydown",
        (event) => event instanceof KeyboardEvent && event.key === "Enter" && this.taken(),
      );
    }
    this.by.addEventListener("change", () => this.store.set({ by: this.by.value === "captions" ? "captions" : "" }));
    this.button.addEventListener("click", () => this.open(this.panel.hidden));
    this.panel.addEventListener("keydown", (event) => event.key === "Escape" && close());
    byId("filters-clear").addEventListener("click", () => this.clear());
    byId("filters-close").addEventListener("click", close);
  }

  taken() {
    this.soon.now();
    this.store.settle();
  }

  /** The fields become the state. */
  take() {
    /** @type {Filters} */
    const filters = {};
    for (const [name, field] of Object.entries(this.fields)) {
      const value = field.value.trim();
      const numeric = field.inputMode === "decimal";
      const wrong = Boolean(value) && ((numeric && number(value) === null) || (name === "near" && !coordinates(value)));
      field.setAttribute("aria-invalid", String(wrong));
      if (value && !wrong) filters[name] = value;
    }
    this.store.set({ filters }, "typing");
  }

  clear() {
    this.store.set({ filters: {}, by: "" });
    for (const field of Object.values(this.fields)) {
      field.value = "";
      field.setAttribute("aria-invalid", "false");
    }
    this.refuse("");
  }

  /** @param {boolean} yes */
  open(yes) {
    this.panel.hidden = !yes;
    this.button.setAttribute("aria-expanded", String(yes));
  }

  /** @param {string} message why the service does not understand the filter; "" where it does */
  refuse(message) {
    this.wrong.textContent = placed(message, this.store.state.filters);
    this.fields.where.setAttribute("aria-invalid", String(Boolean(message)));
    if (message) this.open(true);
    this.pills(this.store.state);
  }

  show(state) {
    for (const [name, field] of Object.entries(this.fields)) {
      const value = state.filters[name] ?? "";
      // What is being typed stays, and so does what is no number; back and forward change all fields.
      const wrong = name !== "where" && field.getAttribute("aria-invalid") === "true";
      if (field.value === value || (!this.store.arrived && (wrong || field === document.activeElement))) continue;
      field.value = value;
      if (wrong) field.setAttribute("aria-invalid", "false");
    }
    this.by.value = state.by;
    this.pills(state);
  }

  /** The filters in use, each to be taken away; struck out is one that the service does not understand. */
  pills(state) {
    const used = Object.entries(SAID).flatMap(([name, say]) => {
      const value = name === "by" ? state.by : state.filters[name];
      const text = value && say(value, state.filters);
      return text ? [{ name, text }] : [];
    });
    byId("filters-count").textContent = String(used.length);
    byId("filters-count").hidden = !used.length;
    this.button.classList.toggle("used", used.length > 0);
    const key = JSON.stringify([used, this.wrong.textContent]);
    if (key === this.drawn) return; // or the focus would be lost
    this.drawn = key;
    byId("pills").replaceChildren(...used.map((one) => this.pill(one)));
  }

  pill({ name, text }) {
    const remove = () => {
      this.store.set(name === "by" ? { by: "" } : { filters: this.without(name) });
      this.button.focus();
    };
    const bad = name === "where" && this.wrong.textContent ? " bad" : "";
    const button = el(
      "button",
      { type: "button", class: `pill${bad}`, "aria-label": `Remove the filter ${seen(text)}`, on: { click: remove } },
      el("bdi", {}, seen(text)),
      icon("close"),
    );
    return el("li", {}, button);
  }

  /** The filters but for one. */
  without(name) {
    const filters = { ...this.store.state.filters };
    delete filters[name];
    if (name === "near") delete filters.km;
    this.fields[name].setAttribute("aria-invalid", "false");
    return filters;
  }

  /** Offers what a library can be filtered by. @param {import("./api.js").LibraryFacts} library */
  library(library) {
    const known = new Set(library.columns.map(({ name }) => name));
    for (const group of this.panel.querySelectorAll("[data-column]")) {
      group.toggleAttribute("hidden", !known.has(group.getAttribute("data-column") ?? ""));
    }
    byId("by-group").hidden = !library.captions;
    byId("where-columns").replaceChildren(
      "Columns: ",
      ...library.columns.flatMap(({ name, type }, place) => [place ? ", " : "", el("code", { title: type }, name)]),
    );
  }
}
