// The filters: fields for what is asked most, and one for everything else.

import { byId, debounced, el, icon } from "./dom.js";
import { NEAR, coordinates, placed } from "./where.js";
import { seen } from "./words.js";

/** @typedef {import("./state.js").Filters} Filters */

const FORMATS = ["jpeg", "png", "webp", "gif", "tiff", "bmp", "heic", "avif"];
const WAIT = 350; // milliseconds without a key before a field counts

/** Each field: what the state calls it, its label, and the column it needs. */
const FIELDS = [
  { group: "Year", name: "from", label: "Year from", hint: "from", kind: "number", column: "year" },
  { group: "Year", name: "to", label: "Year to", hint: "to", kind: "number", column: "year" },
  { group: "At least", name: "width", label: "Width at least, in pixels", hint: "width", kind: "number", column: "width" },
  { group: "At least", name: "height", label: "Height at least, in pixels", hint: "height", kind: "number", column: "height" },
  { group: "Format", name: "format", label: "Format", kind: "select", column: "format" },
  { group: "Caption contains", name: "caption", label: "Caption contains", kind: "text", column: "captions" },
  { group: "Tag contains", name: "tag", label: "Tag contains", kind: "text", column: "tags" },
  { group: "Camera contains", name: "camera", label: "Camera contains", kind: "text", column: "camera" },
  { group: "Near", name: "near", label: "Near a place: latitude, longitude", hint: "48.21, 16.37", kind: "text", column: "latitude" },
  { group: "Near", name: "km", label: "Within kilometres", hint: "10 km", kind: "number", column: "latitude" },
];

/** What a filter in use is called. @type {Record<string, (value: string, all: Filters) => string|null>} */
const SAID = {
  from: (value) => `from ${value}`,
  to: (value) => `to ${value}`,
  width: (value) => `${value} px wide or more`,
  height: (value) => `${value} px high or more`,
  format: (value) => value.toUpperCase(),
  caption: (value) => `caption: ${value}`,
  tag: (value) => `tag: ${value}`,
  camera: (value) => `camera: ${value}`,
  near: (value, all) => (coordinates(value) ? `within ${all.km || NEAR} km of ${value}` : null),
  km: () => null,
  where: (value) => value,
};

export class FiltersPanel {
  /** @param {import("./state.js").Store} store */
  constructor(store) {
    this.store = store;
    this.panel = byId("filters");
    this.button = byId("filters-button");
    /** @type {Record<string, HTMLInputElement|HTMLSelectElement>} */
    this.fields = {};
    this.drawn = "";
    this.soon = debounced(() => this.take(), WAIT);
    this.build();
    this.button.addEventListener("click", () => this.open(this.panel.hidden));
    this.panel.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      this.open(false);
      this.button.focus();
    });
    store.listen((state) => this.show(state));
  }

  build() {
    /** @type {Map<string, HTMLElement[]>} */
    const groups = new Map();
    for (const field of FIELDS) {
      const input = (this.fields[field.name] = this.input(field));
      groups.set(field.group, [...(groups.get(field.group) ?? []), input]);
    }
    const where = el("input", {
      type: "text", id: "where", class: "code", maxLength: 4000, spellcheck: false, autocomplete: "off", autocapitalize: "off",
      placeholder: "year = 2024 and width > 2000", "aria-describedby": "where-wrong where-columns", on: this.events(),
    });
    this.fields.where = where;
    this.wrong = el("p", { class: "wrong", id: "where-wrong", role: "alert" });
    this.columns = el("p", { class: "columns", id: "where-columns" });
    this.by = el("select", { id: "by", on: { change: () => this.store.set({ by: this.by.value === "captions" ? "captions" : "" }) } },
      el("option", { value: "" }, "what pictures show"),
      el("option", { value: "captions" }, "what captions say"));
    this.byLabel = el("label", { class: "group" }, el("span", {}, "Search by"), this.by);
    this.panel.append(
      el("div", { class: "fields" },
        this.byLabel,
        ...[...groups].map(([name, inputs]) =>
          el("div", { class: `group${inputs.length > 1 ? " pair" : ""}${name === "Near" ? " uneven" : ""}`, role: "group", "aria-label": name },
            el("span", { "aria-hidden": "true" }, name), el("div", {}, ...inputs)))),
      el("div", { class: "free" }, el("label", { for: "where" }, "Any other condition"), where, this.wrong, this.columns),
      el("div", { class: "buttons" },
        el("button", { type: "button", class: "plain", on: { click: () => this.clear() } }, "Clear all"),
        el("button", { type: "button", class: "quiet", on: { click: () => { this.open(false); this.button.focus(); } } }, "Close")),
    );
  }

  input({ name, label, hint, kind }) {
    if (kind === "select") {
      return el("select", { "aria-label": label, id: `filter-${name}`, on: this.events() },
        el("option", { value: "" }, "any"), ...FORMATS.map((value) => el("option", { value }, value.toUpperCase())));
    }
    return el("input", {
      // Browsers' own number fields swallow what is no number, and turn with the wheel.
      type: "text", inputMode: kind === "number" ? "numeric" : "text", id: `filter-${name}`, "aria-label": label,
      placeholder: hint ?? "", autocomplete: "off", dir: "auto", maxLength: 200, on: this.events(),
    });
  }

  events() {
    return {
      input: () => this.soon(),
      change: () => this.taken(),
      keydown: (event) => event.key === "Enter" && this.taken(),
    };
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
      const number = field.inputMode === "numeric";
      const wrong = Boolean(value) && ((number && !/^\d+([.,]\d+)?$/.test(value)) || (name === "near" && !coordinates(value)));
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
      const text = state.filters[name] && say(state.filters[name], state.filters);
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
      const filters = { ...this.store.state.filters };
      delete filters[name];
      if (name === "near") delete filters.km;
      this.fields[name].setAttribute("aria-invalid", "false");
      this.store.set({ filters });
      this.button.focus();
    };
    const bad = name === "where" && this.wrong.textContent ? " bad" : "";
    const button = el("button", { type: "button", class: `pill${bad}`, "aria-label": `Remove the filter ${seen(text)}`, on: { click: remove } },
      el("bdi", {}, seen(text)), icon("close"));
    return el("li", {}, button);
  }

  /** Offers what a library can be filtered by. @param {import("./api.js").LibraryFacts} library */
  library(library) {
    const known = new Set(library.columns.map(({ name }) => name));
    for (const { name, column } of FIELDS) {
      const group = this.fields[name].closest(".group");
      if (group instanceof HTMLElement) group.hidden = !known.has(column);
    }
    this.byLabel.hidden = !library.captions;
    this.columns.replaceChildren("Columns: ", ...library.columns.flatMap(({ name, type }, place) => [
      place ? ", " : "", el("code", { title: type }, name)]));
  }
}
