// What the page asks the service for. Every failure becomes a Problem with one line to show.

/**
 * @typedef {{id: string, path: string, name: string, score: number|null, fit: number|null, width: number,
 *   height: number, taken: string|null, caption: string|null, copies: number}} Hit
 * @typedef {{hits: Hit[], nothing_fits: boolean, total: number|null, milliseconds: number}} Answer
 * @typedef {{text: string, score: number, fit: number, id: string, path: string}} CaptionHit
 * @typedef {{text: string, score: number, fit: number}} TextScore
 * @typedef {{name: string, pictures: number, captions: boolean, model: string, dims: number, engine: string,
 *   columns: {name: string, type: string}[], examples: string[]}} LibraryFacts
 * @typedef {{weight: number, text?: string, id?: string, upload?: string}} Term
 */

/** Pictures that the service goes down to. */
export const DEEPEST = 100_000;

const LONG = 1500; // letters, of which each may take nine in an address

/** A request that brought no answer. `status` is 0 where the service was not reached. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {string} [hint]
   * @param {number} [wait] seconds after which it is worth another try
   * @param {string} [about] "where" if it is the filter that is not understood
   */
  constructor(status, message, hint = "", wait = 0, about = "") {
    super(message);
    this.status = status;
    this.hint = hint;
    this.wait = wait;
    this.about = about;
  }

  /** @returns {string} in one line */
  get line() {
    const message = this.message.charAt(0).toUpperCase() + this.message.slice(1);
    return [message, this.hint]
      .filter(Boolean)
      .map((text) => (/[?!]\s*$/.test(text) ? text : text.replace(/[.\s]*$/, ".")))
      .join(" ");
  }
}

/** Asks for the token; set by token.js. @type {{ask: () => Promise<boolean>}} */
export const access = { ask: async () => false };

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>} what the service answered
 * @throws {Problem} for every failure but an abort, which stays a DOMException
 */
export async function ask(path, options = {}) {
  const response = await reach(path, options);
  if (response.ok) {
    try {
      return await response.json();
    } catch (error) {
      if (options.signal?.aborted) throw error;
      throw new Problem(0, "The answer of the service broke off");
    }
  }
  const problem = await problemOf(response); // read first: an answer that is not read keeps its connection
  if (response.status === 401 && path !== "/api/session" && (await access.ask())) return ask(path, options);
  throw problem;
}

async function reach(path, options) {
  try {
    return await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    const offline = navigator.onLine === false;
    throw new Problem(0, offline ? "This device is offline" : "The service cannot be reached");
  }
}

async function problemOf(response) {
  const told = await response.json().catch(() => ({}));
  const wait = Number(response.headers.get("retry-after")) || 0;
  if (response.status === 429) return new Problem(429, "Too many requests at once", told.hint, wait || 1);
  if (typeof told.error === "string") {
    return new Problem(response.status, told.error, told.hint ?? "", wait, told.about ?? "");
  }
  return new Problem(response.status, `The service answered with an error (${response.status})`);
}

const under = (library, path) => `/api/${encodeURIComponent(library)}/${path}`;
const json = (body) => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

function query(values) {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== undefined);
  return new URLSearchParams(kept.map(([name, value]) => [name, String(value)])).toString();
}

/** @returns {Promise<LibraryFacts[]>} */
export const libraries = () => ask("/api/libraries");

/**
 * @param {string} library
 * @param {{terms: Term[], k: number, offset: number, where: string, by?: string}} request
 * @param {AbortSignal} [signal]
 * @returns {Promise<Answer>}
 */
export function search(library, { terms, k, offset, where, by }, signal) {
  const [first] = terms;
  const short = (first.text ?? "").length + where.length < LONG;
  if (terms.length === 1 && first.text !== undefined && first.weight === 1 && short) {
    return ask(under(library, `search?${query({ q: first.text, k, offset, where, by })}`), { signal });
  }
  return ask(under(library, "search"), { ...json({ terms, k, offset, where, by: by || undefined }), signal });
}

/**
 * The newest pictures, in the form of an answer.
 * @param {string} library
 * @param {{k: number, offset: number, where: string}} request
 * @param {AbortSignal} [signal]
 * @returns {Promise<Answer>}
 */
export async function newest(library, request, signal) {
  const answer = await ask(under(library, `pictures?${query(request)}`), { signal });
  const hits = answer.pictures.map((picture) => ({ score: null, fit: null, caption: null, copies: 0, ...picture }));
  return { hits, nothing_fits: false, total: answer.total, milliseconds: 0 };
}

/**
 * @param {string} library
 * @param {{terms: Term[], k: number, offset: number}} request
 * @param {AbortSignal} [signal]
 * @returns {Promise<CaptionHit[]>}
 */
export async function captions(library, request, signal) {
  return (await ask(under(library, "captions"), { ...json(request), signal })).captions;
}

/**
 * The record of a picture, with all columns.
 * @param {string} library
 * @param {string} id
 * @param {AbortSignal} [signal]
 */
export const picture = (library, id, signal) => ask(under(library, `pictures/${encodeURIComponent(id)}`), { signal });

/**
 * How well a picture's own captions and some texts fit it.
 * @param {string} library
 * @param {string} id
 * @param {string[]} texts
 * @param {AbortSignal} [signal]
 * @returns {Promise<{texts: TextScore[], captions: TextScore[]}>}
 */
export function scores(library, id, texts, signal) {
  const values = new URLSearchParams(texts.map((text) => ["q", text]));
  return ask(under(library, `pictures/${encodeURIComponent(id)}/scores?${values}`), { signal });
}

/**
 * Hands the service a picture to search with.
 * @param {string} library
 * @param {Blob} blob
 * @param {string} name
 * @returns {Promise<{upload: string, width: number, height: number}>}
 */
export function upload(library, blob, name) {
  const form = new FormData();
  form.append("file", blob, name || "picture");
  return ask(under(library, "uploads"), { method: "POST", body: form });
}

/** Shows the service its token, which answers with a cookie. @param {string} token */
export const session = (token) => ask("/api/session", json({ token }));

/** @param {string} library @param {string} id */
export const thumbnail = (library, id) => under(library, `pictures/${encodeURIComponent(id)}/thumbnail`);

/** @param {string} library @param {string} id */
export const original = (library, id) => under(library, `pictures/${encodeURIComponent(id)}/original`);

/**
 * Why a picture's file does not come, which an image does not tell.
 * @param {string} library
 * @param {string} id
 * @param {AbortSignal} signal
 * @returns {Promise<Problem|null>} null where it does come
 */
export async function missing(library, id, signal) {
  try {
    const response = await reach(original(library, id), { signal, headers: { range: "bytes=0-0" } });
    if (!response.ok) return await problemOf(response);
    await response.body?.cancel();
    return null;
  } catch (error) {
    if (error instanceof Problem) return error;
    throw error;
  }
}
