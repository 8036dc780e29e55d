// The pictures that answer what the state asks for: as one types, and never an older answer after a newer one.

import { byId, debounced } from "./dom.js";
import { feedOf, forget } from "./feed.js";
import { expression } from "./where.js";
import { terms } from "./terms.js";
import * as trouble from "./trouble.js";

/** @typedef {import("./feed.js").Feed} Feed */
/** @typedef {import("./state.js").State} State */

const WAIT = 150; // milliseconds without a key before typed words are searched for

export class Results {
  /**
   * @param {import("./state.js").Store} store
   * @param {(message: string) => void} refuse told when the filter is not understood, with "" when it is
   */
  constructor(store, refuse) {
    this.store = store;
    this.refuse = refuse;
    /** @type {Feed|null} */
    this.feed = null; // what is shown
    /** @type {Feed|null} */
    this.asked = null; // what is waited for, or shown
    this.key = "";
    /** @type {((feed: Feed, fresh: boolean) => void)[]} */
    this.listeners = [];
    this.soon = debounced(() => this.go(), WAIT);
    store.listen((state) => this.update(state));
  }

  /** @param {(feed: Feed, fresh: boolean) => void} listener `fresh`: it answers another question than before */
  listen(listener) {
    this.listeners.push(listener);
  }

  /** @param {State} state */
  update(state) {
    if (!state.library || state.view === "captions") return;
    const key = JSON.stringify(question(state));
    if (key === this.key) return;
    this.key = key;
    // What was asked before is of no use any more, even if it is on its way.
    if (this.asked !== this.feed) this.drop();
    if (this.store.typing) this.soon();
    else {
      this.soon.cancel();
      this.go();
    }
  }

  drop() {
    if (this.asked && this.asked !== this.feed) {
      this.asked.abort();
      forget(this.asked);
    }
    this.asked = this.feed;
  }

  async go() {
    const feed = feedOf(question(this.store.state));
    this.asked = feed;
    if (await this.page(feed, feed.hits.length ? 0 : this.wanted(), () => this.go())) {
      if (this.asked !== feed) return;
      this.feed = feed;
      this.tell(true);
    }
  }

  /** How many pictures were shown at this step of the history. */
  wanted() {
    return this.store.arrived ? (history.state?.count ?? 0) : 0;
  }

  /** Gets the next page of what is shown. */
  async more() {
    const { feed } = this;
    if (!feed || feed !== this.asked || feed.ended || feed.loading) return;
    if ((await this.page(feed, 0, () => this.more())) && feed === this.feed) this.tell(false);
  }

  async page(feed, count, retry) {
    const first = !feed.hits.length;
    if (feed.ended || (!first && feed !== this.feed)) {
      this.done();
      return true;
    }
    byId("progress").hidden = false;
    try {
      do await feed.more(count - feed.hits.length);
      while (feed.hits.length < count && !feed.ended);
    } catch (error) {
      if (first) forget(feed);
      if (error.name === "AbortError" || this.asked !== feed) return false;
      byId("progress").hidden = true;
      const filter = error.about === "where";
      this.refuse(filter ? error.line : "");
      if (filter) trouble.hide();
      else trouble.show(error, error.status === 422 ? null : retry); // what is not allowed will not be then either
      return false;
    }
    if (this.asked === feed) this.done();
    return true;
  }

  done() {
    byId("progress").hidden = true;
    this.refuse("");
    trouble.hide();
  }

  tell(fresh) {
    // What was found in another library, while this one has not answered, would be taken for this one's.
    if (this.feed?.question.library !== this.store.state.library) return;
    for (const listener of this.listeners) listener(this.feed, fresh);
  }
}

/** @param {State} state @returns {import("./feed.js").Question} */
function question(state) {
  return { library: state.library, terms: terms(state), where: expression(state.filters), by: state.by };
}
