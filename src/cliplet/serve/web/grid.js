// The pictures that were found. Only rows near the window are in the page, so thousands cost no more than a screenful.

import { el } from "./dom.js";
import { neighbour, rowAt, rowOf, rows, shape } from "./layout.js";

/** @typedef {import("./api.js").Hit} Hit */
/** @typedef {import("./layout.js").Row} Row */

const AROUND = 1.2; // windows above and below that are kept ready
const STEPS = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End", "PageUp", "PageDown"];

export class Grid {
  /**
   * @param {HTMLElement} container an element with role grid
   * @param {{tile: (hit: Hit, before: HTMLElement|null) => HTMLElement, open: (index: number) => void,
   *   like: (index: number) => void, more: () => void, leave: () => void}} parts `tile` makes an element with a link
   *   in it, out of what stood for the same picture `before`; `leave` is called by the arrow up in the first row
   */
  constructor(container, parts) {
    this.container = container;
    this.parts = parts;
    /** @type {Hit[]} */
    this.hits = [];
    /** @type {number[]} */
    this.shapes = [];
    /** @type {Row[]} */
    this.rows = [];
    this.ended = true;
    this.active = 0; // the picture that Tab leads to
    this.width = 0;
    this.scale = 1;
    /** @type {Map<number, HTMLElement>} */
    this.drawn = new Map();
    /** @type {Map<string, {hit: Hit, tile: HTMLElement}>} */
    this.tiles = new Map();
    this.frame = 0;
    const later = () => {
      this.frame ||= requestAnimationFrame(() => {
        this.frame = 0;
        this.draw();
      });
    };
    addEventListener("scroll", later, { passive: true });
    new ResizeObserver(() => this.resize()).observe(container);
    container.addEventListener("keydown", (event) => this.key(event));
    container.addEventListener("focusin", (event) => this.focused(event));
  }

  /** @returns {number} between pictures, in pixels */
  get gap() {
    return this.width < 600 ? 3 : 6;
  }

  /** @returns {number} the height that rows come close to */
  get target() {
    return (this.width < 600 ? 118 : this.width < 1100 ? 168 : 196) * this.scale;
  }

  /**
   * Shows these pictures: the same ones and more, or others.
   * @param {Hit[]} hits
   * @param {boolean} ended whether there are no more
   */
  show(hits, ended) {
    const grown = hits.length >= this.hits.length && this.hits.every((hit, at) => hit === hits[at]);
    if (!grown) {
      this.active = 0;
      this.shapes = [];
    }
    for (const hit of hits.slice(this.shapes.length)) this.shapes.push(shape(hit));
    this.hits = [...hits];
    this.ended = ended;
    this.arrange(!grown);
  }

  /** Makes rows higher or lower. @param {number} scale 1 as by itself */
  size(scale) {
    this.scale = scale;
    this.keepingPlace(() => this.arrange(true));
  }

  resize() {
    const width = this.container.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.keepingPlace(() => this.arrange(true));
  }

  /** Does something that moves pictures, and scrolls so that the first one in the window stays there. */
  keepingPlace(work) {
    const above = -this.container.getBoundingClientRect().top;
    const row = this.rows[rowAt(this.rows, above)];
    work();
    if (above <= 0 || !row) return;
    const now = this.rows[rowOf(this.rows, row.first)];
    if (now) scrollBy({ top: now.top - row.top, behavior: "instant" });
  }

  arrange(anew) {
    this.width ||= this.container.clientWidth;
    if (!this.width) return;
    const { width, target, gap, ended } = this;
    this.rows = rows(this.shapes, { width, target, gap, ended });
    const last = this.rows[this.rows.length - 1];
    this.container.style.height = `${last ? last.top + last.height : 0}px`;
    this.container.setAttribute("aria-rowcount", String(ended ? this.rows.length : -1));
    const focused = anew && this.container.contains(document.activeElement) ? this.active : -1;
    if (anew) this.drawn.clear();
    this.draw(anew);
    if (focused >= 0) this.focus(focused, false);
  }

  draw(anew = false) {
    const top = -this.container.getBoundingClientRect().top;
    const from = rowAt(this.rows, top - AROUND * innerHeight);
    const wanted = new Set();
    for (let at = from; at < this.rows.length && this.rows[at].top < top + (1 + AROUND) * innerHeight; at += 1) {
      wanted.add(at);
    }
    // The row with the focus stays, wherever one scrolls to, or the focus would be lost.
    const active = rowOf(this.rows, this.active);
    if (active >= 0) wanted.add(active);
    for (const [at, row] of this.drawn) {
      if (wanted.has(at)) continue;
      row.remove();
      this.drawn.delete(at);
    }
    const missing = [...wanted].filter((at) => !this.drawn.has(at)).sort((a, b) => a - b);
    for (const at of missing) this.drawn.set(at, this.row(at));
    if (anew) {
      this.container.replaceChildren(...[...this.drawn.entries()].sort((a, b) => a[0] - b[0]).map(([, row]) => row));
    } else {
      for (const at of missing) this.insert(at);
    }
    this.prune();
  }

  /** In the order in which they are read. */
  insert(at) {
    const row = this.drawn.get(at);
    const next = [...this.drawn.keys()]
      .filter((other) => other > at && this.drawn.get(other)?.parentNode)
      .sort((a, b) => a - b)[0];
    if (row) this.container.insertBefore(row, next === undefined ? null : (this.drawn.get(next) ?? null));
  }

  row(at) {
    const { top, height, first, widths } = this.rows[at];
    const cells = widths.map((width, place) => {
      const tile = this.tile(first + place);
      tile.style.width = `${width}px`;
      tile.setAttribute("aria-colindex", String(place + 1));
      return tile;
    });
    const row = el("div", { class: "row", role: "row", "aria-rowindex": at + 1 }, ...cells);
    row.style.top = `${top}px`;
    row.style.height = `${height}px`;
    row.style.gap = `${this.gap}px`;
    return row;
  }

  /**
   * The element of a picture: the same one again while it is in the page. An id alone says too little: in another
   * answer the same picture fits otherwise, and in another library it is another picture.
   */
  tile(index) {
    const hit = this.hits[index];
    const known = this.tiles.get(hit.id);
    const tile = known?.hit === hit ? known.tile : this.parts.tile(hit, known?.tile ?? null);
    this.tiles.set(hit.id, { hit, tile });
    tile.dataset.index = String(index);
    this.reachable(tile, index === this.active);
    return tile;
  }

  prune() {
    for (const [id, { tile }] of this.tiles) if (!tile.isConnected) this.tiles.delete(id);
  }

  reachable(tile, yes) {
    for (const part of tile.querySelectorAll("a, button")) part.tabIndex = yes ? 0 : -1;
  }

  element(index) {
    return this.container.querySelector(`[data-index="${index}"]`);
  }

  activate(index) {
    const before = this.element(this.active);
    if (before) this.reachable(before, false);
    this.active = index;
    this.draw();
    const now = this.element(index);
    if (now) this.reachable(now, true);
    return now;
  }

  /**
   * Goes to a picture.
   * @param {number} index
   * @param {boolean} [scroll]
   */
  focus(index, scroll = true) {
    const row = this.rows[rowOf(this.rows, index)];
    if (!row) return;
    const tile = this.activate(index);
    tile?.querySelector("a")?.focus({ preventScroll: true });
    if (scroll) this.reveal(row);
  }

  /** Scrolls as little as shows the whole row below what stays at the top of the window. */
  reveal(row) {
    const box = this.container.getBoundingClientRect();
    const covered = document.querySelector(".query")?.getBoundingClientRect();
    const above = Math.max(0, covered ? covered.bottom : 0) + 12;
    const top = box.top + row.top;
    const bottom = top + row.height;
    if (top < above) scrollBy({ top: top - above, behavior: "instant" });
    else if (bottom > innerHeight - 12) scrollBy({ top: bottom - innerHeight + 12, behavior: "instant" });
  }

  focused(event) {
    const tile = event.target.closest("[data-index]");
    const index = Number(tile?.dataset.index);
    if (tile && index !== this.active) this.activate(index);
  }

  key(event) {
    if (event.altKey || event.metaKey || !(event.target instanceof HTMLElement)) return;
    const tile = event.target.closest("[data-index]");
    if (!tile) return;
    const index = Number(tile.dataset.index);
    if (STEPS.includes(event.key)) {
      event.preventDefault();
      this.step(index, event.key, event.ctrlKey);
    } else if (event.key === "m" && !event.ctrlKey) {
      event.preventDefault();
      this.parts.like(index);
    }
  }

  step(index, key, far) {
    if (far && (key === "Home" || key === "End")) {
      this.focus(key === "Home" ? 0 : this.count - 1);
      return;
    }
    const to = neighbour(this.rows, index, key, this.gap);
    if (to === index && key === "ArrowUp") this.parts.leave();
    else this.focus(to);
    if (!this.ended && rowOf(this.rows, to) >= this.rows.length - 2) this.parts.more();
  }

  /** @returns {number} pictures that stand in rows */
  get count() {
    const last = this.rows[this.rows.length - 1];
    return last ? last.first + last.widths.length : 0;
  }
}
