// The view from a picture to captions: which sentences of the library the model finds closest to a picture.

import * as api from "./api.js";
import { bars, best, legend } from "./bars.js";
import { anyCaptioned } from "./chance.js";
import { byId, el, icon, plainly } from "./dom.js";
import { address } from "./state.js";
import { thumb } from "./thumbs.js";
import * as trouble from "./trouble.js";
import { shown, withUploads } from "./uploads.js";
import { seen } from "./words.js";

const PAGE = 20;

export class CaptionsView {
  /**
   * @param {import("./state.js").Store} store
   * @param {{library: () => import("./api.js").LibraryFacts|undefined, choose: () => void,
   *   open: (id: string, from: HTMLElement) => void, announce: (text: string) => void}} page
   */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.box = byId("captions-view");
    this.key = "";
    this.stop = new AbortController();
    /** @type {Promise<void>|null} */
    this.loading = null;
    /** @type {import("./api.js").CaptionHit[]} */
    this.found = [];
    store.listen((state) => this.update(state));
  }

  /** @param {import("./state.js").State} state */
  update(state) {
    if (state.view !== "captions" || !state.library) return;
    const key = JSON.stringify([state.library, state.of]);
    if (key === this.key) return;
    this.key = key;
    this.stop.abort();
    this.stop = new AbortController();
    this.loading = null;
    this.found = [];
    this.draw(state);
    if (state.of && this.page.library()?.captions) this.more(this.stop.signal);
  }

  draw(state) {
    const head = [
      el("h2", { id: "captions-title" }, "Picture → captions"),
      el("p", { class: "lead" }, "Which of the library’s captions the model finds closest to a picture."),
    ];
    if (!this.page.library()?.captions) {
      this.box.replaceChildren(...head, el("p", { class: "notice" }, "This library holds no captions."));
      return;
    }
    this.list = el("ol", { class: "captions", "aria-label": "Captions, the best first" });
    this.again = el(
      "button",
      { type: "button", class: "plain", hidden: true, on: { click: () => this.more(this.stop.signal) } },
      "More captions",
    );
    this.told = legend("captions");
    this.told.hidden = true;
    this.box.replaceChildren(
      ...head,
      el("div", { class: "beside" }, this.subject(state), el("div", {}, this.list, this.again, this.told)),
    );
  }

  /** The picture, or a place to drop one. */
  subject(state) {
    const choose = (text) =>
      el("button", { type: "button", class: "plain", on: { click: this.page.choose } }, icon("picture"), text);
    if (!state.of) {
      return el(
        "div",
        { class: "place" },
        icon("picture"),
        el("p", {}, "Drop a picture here, paste one, or"),
        choose("Choose a picture"),
        this.any(),
      );
    }
    const image = el("img", { alt: "The picture whose captions are looked for", decoding: "async" });
    const gone = el("p", { class: "note", hidden: true }, "This browser does not hold the picture any more.");
    if (state.of.kind === "id") image.src = api.original(state.library, state.of.value);
    else shown(state.of.value).then((entry) => (entry ? (image.src = entry.url) : (gone.hidden = false)));
    // What the browser cannot show, a TIFF say, the service's thumbnail shows.
    image.addEventListener("error", () => {
      const other = state.of.kind === "id" ? api.thumbnail(state.library, state.of.value) : "";
      if (other && !image.src.endsWith("/thumbnail")) image.src = other;
      else image.hidden = true;
    });
    return el(
      "div",
      { class: "subject" },
      image,
      gone,
      el("div", { class: "choices" }, choose("Another picture"), this.any()),
    );
  }

  any() {
    const take = async () => {
      try {
        const found = await anyCaptioned(this.page.library());
        if (found) this.store.set({ of: { kind: "id", value: found.id } });
      } catch (error) {
        trouble.show(error, take);
      }
    };
    return el(
      "button",
      { type: "button", class: "plain any", on: { click: take } },
      icon("other"),
      "One of the library’s",
    );
  }

  /** Gets the next page; asked twice at a time, it is the same page. */
  more(signal) {
    if (this.loading || signal.aborted) return;
    const loading = this.#page(signal).finally(() => {
      if (this.loading === loading) this.loading = null;
    });
    this.loading = loading;
  }

  async #page(signal) {
    const { state } = this.store;
    const term = { weight: 1, [state.of.kind]: state.of.value };
    byId("progress").hidden = false;
    try {
      const page = await withUploads(state.library, [term], (terms) =>
        api.captions(state.library, { terms, k: PAGE, offset: this.found.length }, signal),
      );
      if (signal.aborted) return;
      trouble.hide();
      this.append(page, state);
    } catch (error) {
      if (!signal.aborted) trouble.show(error, () => this.more(signal));
    } finally {
      if (!signal.aborted) byId("progress").hidden = true;
    }
  }

  append(page, state) {
    const first = this.found.length === 0;
    this.found.push(...page);
    const most = best(this.found);
    this.list.append(...page.map((hit) => this.entry(hit, most, state)));
    this.again.hidden = page.length < PAGE;
    this.told.hidden = !this.found.length;
    if (first)
      this.page.announce(this.found.length ? `Captions, the best: ${this.found[0].text}` : "No caption was found.");
  }

  entry(hit, most, state) {
    const own = state.of?.kind === "id" && state.of.value === hit.id;
    const link = el(
      "a",
      {
        class: "thumb there",
        href: address({ ...state, picture: hit.id }),
        "aria-label": `The picture of this caption: ${seen(hit.text)}`,
        on: {
          click: plainly((from) => this.page.open(hit.id, from)),
        },
      },
      thumb(state.library, hit),
    );
    const words = el("p", { dir: "auto" }, seen(hit.text));
    return el(
      "li",
      {},
      link,
      el("div", {}, words, own && el("span", { class: "own" }, "its own caption")),
      bars(hit, most),
    );
  }

  /** Each picture of these captions once, as the viewer goes through them. */
  pictures() {
    const entries = this.found.map(({ id, path }) => [
      id,
      { id, name: path.split(/[/\\]/).pop() ?? "", width: 0, height: 0 },
    ]);
    return [...new Map(/** @type {any} */ (entries)).values()];
  }
}
