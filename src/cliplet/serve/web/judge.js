// The view from a caption to pictures, with scores: so that one can judge a model by what it finds.

import * as api from "./api.js";
import { bars, best, legend } from "./bars.js";
import { anyCaptioned } from "./chance.js";
import { byId, el, icon, plainly } from "./dom.js";
import { address } from "./state.js";
import { thumb } from "./thumbs.js";
import * as trouble from "./trouble.js";
import { counted, date, seen, whole } from "./words.js";

/** @typedef {import("./feed.js").Feed} Feed */

const LONGEST = 2000; // letters that the service takes
const SAME = 20; // captions of the library that are looked through for the one that is judged

export class JudgeView {
  /**
   * @param {import("./state.js").Store} store
   * @param {import("./results.js").Results} results
   * @param {{library: () => import("./api.js").LibraryFacts|undefined, open: (id: string, from: HTMLElement) => void,
   *   announce: (text: string) => void}} page
   */
  constructor(store, results, page) {
    this.store = store;
    this.results = results;
    this.page = page;
    /** @type {Feed|null} */
    this.feed = null;
    this.drawn = 0;
    this.written = new Set(); // pictures that the caption was written for
    this.stop = new AbortController();
    this.build();
    results.listen((feed) => this.found(feed));
    store.listen((state, before) => {
      if (state.view !== "pictures") this.feed = null;
      byId("another").hidden = !this.page.library()?.captions;
      if (state.library !== before.library || state.view !== before.view) this.prompt();
    });
  }

  build() {
    this.list = el("ol", { class: "judged", "aria-label": "Pictures, the best first" });
    this.summary = el("p", { class: "summary" });
    this.verdict = el("p", { class: "verdict", hidden: true });
    this.notice = el("p", { class: "notice", hidden: true }, "Nothing in this library fits well; these come closest.");
    this.end = el("div", { class: "end" });
    this.told = legend();
    const another = el(
      "button",
      { type: "button", class: "plain", id: "another", on: { click: () => this.another() } },
      icon("other"),
      "one of the library’s",
    );
    byId("pictures-view").append(
      el("h2", { id: "pictures-title" }, "Caption → pictures"),
      el(
        "div",
        { class: "take" },
        el("p", { class: "lead" }, "How the model ranks the pictures for a caption. Write one above, or take"),
        another,
      ),
      el("div", { class: "line" }, this.verdict, this.summary),
      this.notice,
      this.told,
      this.list,
      this.end,
    );
    const watcher = new IntersectionObserver(
      (seen) => this.feed && seen.some((one) => one.isIntersecting) && this.results.more(),
      { rootMargin: "1000px 0px" },
    );
    watcher.observe(this.end);
    this.watcher = watcher;
  }

  /** Without a caption there is nothing to judge. */
  prompt() {
    if (this.feed?.question.terms.length) return;
    this.list.replaceChildren();
    this.drawn = 0;
    this.summary.textContent = "";
    this.verdict.hidden = this.notice.hidden = true;
    this.told.hidden = true;
    this.end.hidden = true;
  }

  /** @param {Feed} feed */
  found(feed) {
    const { state } = this.store;
    if (state.view !== "pictures") return;
    const other = feed !== this.feed;
    this.feed = feed;
    if (!feed.question.terms.length) {
      this.prompt();
      return;
    }
    if (other) {
      this.drawn = 0;
      this.list.replaceChildren();
      this.written = new Set();
      this.look(state);
      scrollTo({ top: 0, behavior: "instant" });
    }
    const most = best(feed.hits.slice(0, 1));
    this.list.append(...feed.hits.slice(this.drawn).map((hit) => this.entry(hit, most, state)));
    this.drawn = feed.hits.length;
    this.told.hidden = !feed.hits.length;
    this.notice.hidden = !(feed.nothingFits && feed.hits.length);
    this.end.hidden = feed.ended;
    const count = feed.total ?? this.page.library()?.pictures ?? 0;
    this.summary.textContent = feed.hits.length
      ? `${counted(count, "picture")} · ${Math.max(1, Math.round(feed.milliseconds))} ms`
      : "No picture passes these filters.";
    this.judge();
    if (other) this.page.announce(this.summary.textContent);
    this.watcher.unobserve(this.end);
    this.watcher.observe(this.end);
  }

  entry(hit, most, state) {
    const name = seen(hit.name);
    const link = el(
      "a",
      {
        href: address({ ...state, picture: hit.id }),
        class: "thumb there",
        "aria-label": `Open ${name}`,
        on: {
          click: plainly((from) => this.page.open(hit.id, from)),
        },
      },
      thumb(state.library, hit),
    );
    const facts = el(
      "div",
      { class: "what" },
      el("p", { class: "file", title: name }, el("bdi", {}, name)),
      hit.caption && el("p", { class: "caption", dir: "auto" }, seen(hit.caption)),
      hit.taken && el("p", { class: "faint" }, date(hit.taken)),
      el("span", { class: "own", hidden: true }, "the caption is this one’s"),
    );
    return el("li", { data: { id: hit.id } }, link, facts, bars({ score: hit.score ?? 0, fit: hit.fit ?? 0 }, most));
  }

  /** Whether the library holds this very caption, and of which pictures. */
  async look(state) {
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const text = state.q.trim();
    if (!text || state.chips.length || !this.page.library()?.captions) return;
    try {
      const request = { terms: [{ weight: 1, text }], k: SAME, offset: 0 };
      const captions = await api.captions(state.library, request, signal);
      const same = captions.filter((hit) => hit.text.trim().toLowerCase() === text.toLowerCase());
      if (signal.aborted) return;
      this.written = new Set(same.map((hit) => hit.id));
      this.judge();
    } catch (error) {
      if (!(error instanceof api.Problem) && !signal.aborted) console.error(error); // the list stands without it
    }
  }

  judge() {
    const hits = this.feed?.hits ?? [];
    for (const entry of this.list.querySelectorAll("li")) {
      const right = this.written.has(entry.dataset.id);
      entry.classList.toggle("right", right);
      entry.querySelector(".own").toggleAttribute("hidden", !right);
    }
    const place = hits.findIndex(({ id }) => this.written.has(id));
    this.verdict.hidden = !this.written.size;
    this.verdict.textContent =
      place >= 0
        ? `The picture that this caption was written for is number ${whole(place + 1)}.`
        : `The picture that this caption was written for is not among the first ${whole(hits.length)}.`;
  }

  /** A caption of any picture of the library. */
  async another() {
    try {
      const found = await anyCaptioned(this.page.library());
      if (found) this.store.set({ q: found.caption.slice(0, LONGEST) });
      else this.page.announce("No caption was found.");
    } catch (error) {
      trouble.show(error, () => this.another());
    }
  }
}
