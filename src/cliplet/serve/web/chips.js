// The terms beside the box: words and pictures, each wanted or not, each as much as one likes.

import * as api from "./api.js";
import { byId, el, icon } from "./dom.js";
import { LEAST_WEIGHT, MOST_WEIGHT, newChip } from "./state.js";
import { shown } from "./uploads.js";

/** @typedef {import("./state.js").Chip} Chip */
/** @typedef {import("./state.js").Store} Store */

const MOST = 15; // terms that the service takes, less the box

/** Why no further term is taken. */
export const FULL = `There can be no more than ${MOST} terms beside the box.`;

/** Shows the chips of the state, and changes them. */
export class Chips {
  /** @param {Store} store */
  constructor(store) {
    this.store = store;
    this.list = byId("chip-list");
    /** @type {Map<number, HTMLElement>} */
    this.drawn = new Map();
    byId("add-more").addEventListener("click", () => this.add("text", "", 1, true));
    byId("add-less").addEventListener("click", () => this.add("text", "", -1, true));
    store.listen((state) => this.show(state));
  }

  /**
   * @param {Chip["kind"]} kind
   * @param {string} value
   * @param {number} [weight]
   * @param {boolean} [edit] whether its words are to be typed now
   * @returns {string} why it is not taken; "" where it is
   */
  add(kind, value, weight = 1, edit = false) {
    const { state } = this.store;
    const there = state.chips.find((chip) => value && chip.kind === kind && chip.value === value);
    if (there) return "This picture is a term already.";
    if (this.full) return FULL;
    const chip = newChip(kind, value, weight);
    const view = state.view === "captions" ? "search" : state.view;
    this.store.set({ chips: [...state.chips, chip], view, picture: "" }, value ? "push" : "replace");
    if (edit) this.drawn.get(chip.key)?.querySelector("input")?.focus();
    return "";
  }

  get full() {
    return this.store.state.chips.length >= MOST;
  }

  /** @param {number} key @param {Partial<Chip>} change @param {"push"|"typing"} how */
  change(key, change, how) {
    const chips = this.store.state.chips.map((chip) => (chip.key === key ? { ...chip, ...change } : chip));
    this.store.set({ chips }, how);
  }

  /** @param {number} key */
  remove(key) {
    const { chips } = this.store.state;
    const place = chips.findIndex((chip) => chip.key === key);
    this.store.set({ chips: chips.filter((chip) => chip.key !== key) });
    // The focus goes to what stands where the chip stood.
    const next = this.store.state.chips[Math.min(place, chips.length - 2)];
    const target = next ? this.drawn.get(next.key)?.querySelector(".sign") : byId("q");
    if (target instanceof HTMLElement) target.focus();
  }

  show(state) {
    // A caption that is judged stands alone, unless there are chips already.
    const offered = state.view === "search" && state.q.trim();
    byId("chips").hidden = state.view === "captions" || (!state.chips.length && !offered);
    byId("add-more").disabled = byId("add-less").disabled = this.full;
    for (const [key, node] of this.drawn) {
      if (state.chips.some((chip) => chip.key === key)) continue;
      node.remove();
      this.drawn.delete(key);
    }
    state.chips.forEach((chip, place) => {
      const node = this.drawn.get(chip.key) ?? this.draw(chip, state.library);
      this.drawn.set(chip.key, node);
      if (this.list.children[place] !== node) this.list.insertBefore(node, this.list.children[place] ?? null);
      this.update(node, chip);
    });
  }

  draw(chip, library) {
    const { key, kind, value } = chip;
    const current = () => this.store.state.chips.find((other) => other.key === key) ?? chip;
    const sign = el("button", {
      type: "button",
      class: "sign",
      on: { click: () => this.change(key, { weight: -current().weight }, "push") },
    });
    const what = kind === "text" ? this.words(key, value) : thumb(kind, value, library);
    const weight = el("input", {
      type: "range",
      min: String(LEAST_WEIGHT),
      max: String(MOST_WEIGHT),
      step: "0.1",
      on: {
        input: () => this.change(key, { weight: Math.sign(current().weight) * Number(weight.value) }, "typing"),
        change: () => this.store.settle(),
      },
    });
    const remove = el(
      "button",
      { type: "button", class: "quiet remove", on: { click: () => this.remove(key) } },
      icon("close"),
    );
    const node = el("li", { class: "chip" }, sign, what, weight, el("output", { class: "weight" }), remove);
    node.addEventListener("keydown", (event) => {
      const typing = event.target instanceof HTMLInputElement && event.target.type === "text" && event.target.value;
      if (event.key === "Delete" || event.key === "Backspace") {
        if (typing) return;
        event.preventDefault();
        this.remove(key);
      }
    });
    return node;
  }

  words(key, value) {
    const field = el("input", {
      type: "text",
      class: "words",
      value,
      maxLength: 2000,
      dir: "auto",
      placeholder: "words",
      autocomplete: "off",
      on: {
        input: () => this.change(key, { value: field.value }, "typing"),
        blur: () => this.left(key),
        keydown: (event) => {
          if (event.key !== "Enter" && event.key !== "Escape") return;
          event.stopPropagation();
          byId("q").focus();
        },
      },
    });
    return field;
  }

  /** A chip without words, once it is left, is none. */
  left(key) {
    this.store.settle();
    const chip = this.store.state.chips.find((other) => other.key === key);
    if (chip && !chip.value.trim()) {
      this.store.set({ chips: this.store.state.chips.filter((other) => other.key !== key) }, "replace");
    }
  }

  update(node, { kind, value, weight }) {
    const name = kind === "text" ? value || "words" : "picture";
    const wanted = weight > 0;
    node.classList.toggle("unwanted", !wanted);
    const sign = node.querySelector(".sign");
    sign.replaceChildren(icon(wanted ? "plus" : "minus"));
    sign.setAttribute("aria-label", wanted ? `More of: ${name}. Change to less` : `Less of: ${name}. Change to more`);
    sign.title = wanted ? "More of this" : "Less of this";
    const field = node.querySelector(".words");
    if (field) {
      field.setAttribute("aria-label", wanted ? "More of these words" : "Less of these words");
      if (field.value !== value) field.value = value;
      field.size = Math.min(28, Math.max(5, value.length));
    }
    const range = node.querySelector("[type=range]");
    const size = Math.abs(weight);
    range.setAttribute("aria-label", `Weight of ${name}`);
    range.style.setProperty("--part", String((size - LEAST_WEIGHT) / (MOST_WEIGHT - LEAST_WEIGHT)));
    if (Number(range.value) !== size) range.value = String(size);
    node.querySelector("output").textContent = `×${size.toFixed(1)}`;
    node.querySelector(".remove").setAttribute("aria-label", `Remove ${name}`);
  }
}

/**
 * A small picture of a term.
 * @param {"id"|"upload"|"text"} kind
 * @param {string} value
 * @param {string} library
 */
function thumb(kind, value, library) {
  const image = el("img", { alt: "", decoding: "async" });
  const frame = el("span", { class: "thumb" }, icon("picture"), image);
  image.addEventListener("load", () => frame.classList.add("there"));
  if (kind === "id") image.src = api.thumbnail(library, value);
  else shown(value).then((found) => found && (image.src = found.url));
  return frame;
}
