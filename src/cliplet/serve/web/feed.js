// An answer that grows page by page, and the last few of them, so that going back is instant.

import * as api from "./api.js";
import { withUploads } from "./uploads.js";

export const PAGE = 60;
const MOST_AT_ONCE = 600;
const KEPT = 8;
const LARGE = 2400; // pictures; a feed of more is not kept when another one is shown
const FRESH = 5 * 60_000; // milliseconds; later the library may hold others

/**
 * @typedef {{library: string, terms: api.Term[], where: string, by: string}} Question
 */

/** The pictures that answer one question. */
export class Feed {
  /** @param {Question} question */
  constructor(question) {
    this.question = question;
    /** @type {api.Hit[]} */
    this.hits = [];
    this.ended = false;
    this.cut = false; // whether there are more, deeper than the service goes
    this.nothingFits = false;
    /** @type {number|null} */
    this.total = null;
    this.milliseconds = 0;
    /** @type {Promise<void>|null} */
    this.loading = null;
    this.stop = new AbortController();
    this.seen = new Set();
    this.offset = 0;
    this.asked = Date.now();
  }

  /**
   * Gets the next page; asked twice at a time, it is the same page.
   * @param {number} [count]
   * @returns {Promise<void>}
   */
  more(count = PAGE) {
    if (this.ended) return Promise.resolve();
    this.loading ??= this.#page(Math.min(MOST_AT_ONCE, Math.max(PAGE, count))).finally(() => {
      this.loading = null;
    });
    return this.loading;
  }

  async #page(k) {
    this.stop = new AbortController();
    const { library, terms, where, by } = this.question;
    const { signal } = this.stop;
    const request = { k, offset: this.offset, where };
    const answer = terms.length
      ? await withUploads(library, terms, (known) => api.search(library, { ...request, terms: known, by }, signal))
      : await api.newest(library, request, signal);
    this.offset += answer.hits.length;
    // A library that grows meanwhile moves pictures on to the next page; each is shown once.
    for (const hit of answer.hits) {
      if (this.seen.has(hit.id)) continue;
      this.seen.add(hit.id);
      this.hits.push(hit);
    }
    if (request.offset === 0) {
      this.nothingFits = answer.nothing_fits;
      this.total = answer.total;
      this.milliseconds = answer.milliseconds;
    }
    const total = answer.total ?? Infinity;
    this.ended = answer.hits.length < k || this.offset >= Math.min(total, api.DEEPEST);
    this.cut = this.ended && answer.hits.length === k && this.offset < total;
  }

  /** Its running request is of no use any more. */
  abort() {
    if (this.loading) this.stop.abort();
  }
}

/** @type {Map<string, Feed>} */
const feeds = new Map();

/**
 * The feed of a question: the same one as before where it was asked not long ago.
 * @param {Question} question
 */
export function feedOf(question) {
  const key = JSON.stringify(question);
  const known = feeds.get(key);
  const feed = known && Date.now() - known.asked < FRESH ? known : new Feed(question);
  feeds.delete(key);
  feeds.set(key, feed);
  for (const [old, { hits }] of feeds) {
    if (old !== key && (feeds.size > KEPT || hits.length > LARGE)) feeds.delete(old);
  }
  return feed;
}

/** Forgets all of them, as after an error. @param {Feed} [only] */
export function forget(only) {
  for (const [key, feed] of feeds) if (!only || feed === only) feeds.delete(key);
}
