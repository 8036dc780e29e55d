// The view of pictures: what was found, or the newest ones with examples of queries.

import { byId, debounced, el } from "./dom.js";
import { Grid } from "./grid.js";
import { parse, said, terms } from "./terms.js";
import { tile } from "./tile.js";
import { counted, whole } from "./words.js";

/** @typedef {import("./feed.js").Feed} Feed */

const SIZE = "cliplet-size"; // what the browser remembers the size of pictures by

export class SearchView {
  /**
   * @param {import("./state.js").Store} store
   * @param {import("./results.js").Results} results
   * @param {{library: () => import("./api.js").LibraryFacts|undefined, open: (id: string, from: HTMLElement) => void,
   *   like: (id: string) => void, announce: (text: string) => void}} page
   */
  constructor(store, results, page) {
    this.store = store;
    this.results = results;
    this.page = page;
    /** @type {Feed|null} */
    this.feed = null;
    this.awaited = null; // the picture that is to get the focus, and of which question
    this.grid = new Grid(byId("grid"), {
      tile: (hit, before) => tile(hit, { ...store.state, library: this.feed.question.library }, page, before),
      open: (index) => page.open(this.grid.hits[index].id, byId("grid")),
      like: (index) => page.like(this.grid.hits[index].id),
      more: () => results.more(),
      leave: () => byId("q").focus(),
    });
    this.watcher = new IntersectionObserver((seen) => seen.some((one) => one.isIntersecting) && results.more(), {
      rootMargin: "1500px 0px",
    });
    this.watcher.observe(byId("end"));
    results.listen((feed, fresh) => this.found(feed, fresh));
    this.sized();
    const keep = debounced(() => this.keepPlace(), 250);
    addEventListener("scroll", keep, { passive: true });
  }

  sized() {
    const range = byId("size");
    try {
      range.value = localStorage.getItem(SIZE) ?? "100";
    } catch {
      // A browser that keeps nothing shows the usual size.
    }
    const fill = () => range.style.setProperty("--part", String((range.value - range.min) / (range.max - range.min)));
    fill();
    this.grid.scale = Number(range.value) / 100;
    range.addEventListener("input", () => {
      fill();
      this.grid.size(Number(range.value) / 100);
      try {
        localStorage.setItem(SIZE, range.value);
      } catch {
        // as above
      }
    });
  }

  /** @param {Feed} feed @param {boolean} fresh */
  found(feed, fresh) {
    const { store } = this;
    if (store.state.view !== "search") return;
    const other = feed !== this.feed;
    this.feed = feed;
    this.tell(feed);
    byId("end").hidden = feed.ended && !feed.hits.length;
    this.grid.show(feed.hits, feed.ended);
    const all = feed.cut ? `These are the first ${whole(feed.offset)}.` : "These are all.";
    byId("end").textContent = feed.ended && feed.hits.length > 30 ? all : "";
    if (other) scrollTo({ top: store.arrived ? (history.state?.y ?? 0) : 0, behavior: "instant" });
    if (fresh) this.page.announce(byId("summary").textContent);
    this.comeBack();
    if (!feed.ended) {
      // An observer tells of changes only: what is still in sight after a page is looked at anew.
      this.watcher.unobserve(byId("end"));
      this.watcher.observe(byId("end"));
    }
  }

  tell(feed) {
    const asked = feed.question.terms;
    const searched = asked.length > 0;
    const held = this.page.library()?.pictures ?? 0;
    byId("welcome").hidden = searched || Boolean(feed.question.where);
    byId("search-title").textContent = searched ? "Best matches" : feed.question.where ? "Pictures" : "Newest pictures";
    const count = feed.total ?? held;
    const among =
      feed.question.where && held > count
        ? `${whole(count)} of ${counted(held, "picture")}`
        : counted(count, "picture");
    const time = searched ? ` · ${Math.max(1, Math.round(feed.milliseconds))} ms` : "";
    // How signs between words were understood, and what else counts.
    const composed = parse(this.store.state.q).length > 1 ? ` · ${said(asked)}` : "";
    byId("summary").textContent = feed.hits.length ? `${among}${time}${composed}` : this.none(feed, held);
    const nothing = byId("nothing");
    nothing.hidden = !(searched && feed.nothingFits && feed.hits.length);
    const what = feed.question.where ? "Nothing that passes the filters" : "Nothing in this library";
    nothing.textContent = nothing.hidden ? "" : `${what} fits well; these come closest.`;
  }

  none(feed, held) {
    if (feed.question.where) return "No picture passes these filters.";
    return held ? "Nothing was found." : "This library holds no pictures yet.";
  }

  /** The examples of a library. @param {import("./api.js").LibraryFacts} library */
  welcome(library) {
    byId("lead").textContent = library.examples.length ? "Describe what a picture shows, or drop one here. Try" : "";
    byId("examples").replaceChildren(
      ...library.examples
        .slice(0, 8)
        .map((text) =>
          el(
            "li",
            {},
            el(
              "button",
              { type: "button", class: "pill", dir: "auto", on: { click: () => this.store.set({ q: text }) } },
              text,
            ),
          ),
        ),
    );
  }

  /** To the first picture, from the box. */
  enter() {
    if (this.grid.count) this.grid.focus(this.grid.active < this.grid.count ? this.grid.active : 0);
  }

  /** To a picture, if it is among those that were found. @param {string} id @returns {boolean} */
  focus(id) {
    const index = this.grid.hits.findIndex((hit) => hit.id === id);
    if (index >= 0) this.grid.focus(index);
    else this.awaited = { id, question: questionOf(this.store.state) };
    return index >= 0;
  }

  /** To the picture that was closed before the results behind it were there, unless the person has gone on since. */
  comeBack() {
    const { awaited } = this;
    const still = [document.body, byId("results"), byId("q")].includes(document.activeElement);
    if (awaited?.question === questionOf(this.store.state) && still) this.focus(awaited.id);
    this.awaited = null;
  }

  keepPlace() {
    const { state } = this.store;
    if (state.view !== "search" || !this.feed || this.results.asked !== this.feed) return;
    this.store.keep({ y: Math.round(scrollY), count: this.feed.hits.length });
  }
}

/** @param {import("./state.js").State} state @returns {string} what is asked, of whichever library */
const questionOf = (state) => JSON.stringify([terms(state), state.filters, state.by]);

/** @param {import("./state.js").State} state @returns {string} what a window with these results is called */
export const titleOf = (state) => {
  const said = terms(state).flatMap((term) => (term.text ? [term.text] : []));
  return said.length ? `${said.join(" ")} · cliplet` : "cliplet";
};
