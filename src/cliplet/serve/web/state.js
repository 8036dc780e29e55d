// What the page shows, all of it in the address: so that back, forward, reload and a link that is sent just work.

/**
 * @typedef {{key: number, kind: "text"|"id"|"upload", value: string, weight: number}} Chip a negative weight leaves out
 * @typedef {{from?: string, to?: string, width?: string, height?: string, format?: string, caption?: string,
 *   tag?: string, camera?: string, near?: string, km?: string, where?: string}} Filters
 * @typedef {{library: string, view: "search"|"captions"|"pictures", q: string, chips: Chip[], filters: Filters,
 *   by: ""|"captions", of: {kind: "id"|"upload", value: string}|null, picture: string}} State
 */

export const FILTERS = /** @type {(keyof Filters)[]} */ ([
  "from",
  "to",
  "width",
  "height",
  "format",
  "caption",
  "tag",
  "camera",
  "near",
  "km",
  "where",
]);
export const LEAST_WEIGHT = 0.1;
export const MOST_WEIGHT = 2;
const KINDS = ["text", "id", "upload"];
const VIEWS = ["search", "captions", "pictures"];
let keys = 0;

/** The library that is meant where an address names none. */
export const usual = { library: "" };

/**
 * @param {Chip["kind"]} kind
 * @param {string} value
 * @param {number} [weight]
 * @returns {Chip} with a key of its own, by which its element is found again
 */
export const newChip = (kind, value, weight = 1) => ({ key: (keys += 1), kind, value, weight });

/**
 * @param {string} search the part of an address from its question mark on
 * @returns {State}
 */
export function read(search) {
  const values = new URLSearchParams(search);
  const view = values.get("view") ?? "";
  const of = parted(values.get("of") ?? "");
  /** @type {Filters} */
  const filters = {};
  for (const name of FILTERS) if (values.get(name)) filters[name] = values.get(name) ?? "";
  return {
    library: values.get("library") ?? usual.library,
    view: /** @type {State["view"]} */ (VIEWS.includes(view) ? view : "search"),
    q: values.get("q") ?? "",
    chips: values
      .getAll("t")
      .map(readChip)
      .filter((chip) => chip !== null),
    filters,
    by: values.get("by") === "captions" ? "captions" : "",
    of: of && of.kind !== "text" ? /** @type {State["of"]} */ (of) : null,
    picture: values.get("picture") ?? "",
  };
}

function parted(text) {
  const [kind, ...rest] = text.split(":");
  return KINDS.includes(kind) && rest.length ? { kind, value: rest.join(":") } : null;
}

function readChip(text) {
  const colon = text.indexOf(":");
  const weight = Number(text.slice(0, colon));
  const term = parted(text.slice(colon + 1));
  if (!term || !Number.isFinite(weight) || !weight) return null;
  const size = Math.min(MOST_WEIGHT, Math.max(LEAST_WEIGHT, Math.abs(weight)));
  return newChip(/** @type {Chip["kind"]} */ (term.kind), term.value, Math.sign(weight) * size);
}

/**
 * @param {State} state
 * @returns {string} the address of that state, within this site
 */
export function address(state) {
  const values = new URLSearchParams();
  if (state.library !== usual.library) values.set("library", state.library);
  if (state.view !== "search") values.set("view", state.view);
  if (state.q) values.set("q", state.q);
  for (const { weight, kind, value } of state.chips) {
    if (value) values.append("t", `${Number(weight.toFixed(2))}:${kind}:${value}`);
  }
  for (const name of FILTERS) if (state.filters[name]) values.set(name, state.filters[name] ?? "");
  if (state.by) values.set("by", state.by);
  if (state.of) values.set("of", `${state.of.kind}:${state.of.value}`);
  if (state.picture) values.set("picture", state.picture);
  const text = values.toString();
  return text ? `/?${text}` : "/";
}

/** The one place where the state changes. */
export class Store {
  constructor() {
    /** @type {State} */
    this.state = read(location.search);
    /** @type {((state: State, before: State) => void)[]} */
    this.listeners = [];
    this.typing = false;
    this.closing = false; // going back to before a picture was opened
    /** Drops what the library cannot be asked for. @type {(state: State) => State} */
    this.possible = (state) => state;
    this.arrived = true; // by a link, a reload, back or forward; not by something done on the page
    addEventListener("popstate", () => {
      this.typing = false;
      this.arrived = true;
      this.become(read(location.search));
    });
  }

  /** @param {(state: State, before: State) => void} listener */
  listen(listener) {
    this.listeners.push(listener);
  }

  /**
   * @param {Partial<State>} change
   * @param {"push"|"replace"|"typing"} [how] a step of the history; none; or one for all that is typed in a row
   */
  set(change, how = "push") {
    const next = this.possible({ ...this.state, ...change });
    const to = address(next);
    if (to !== address(this.state)) {
      const replace = how === "replace" || (how === "typing" && this.typing);
      // Behind a picture that is opened, all stays where it is.
      const kept = address({ ...next, picture: this.state.picture }) === address(this.state) ? history.state : {};
      // A picture that was opened here is closed by going back, and not by one step more.
      if (replace) history.replaceState({ ...kept, opened: history.state?.opened }, "", to);
      else history.pushState({ ...kept, opened: Boolean(next.picture && !this.state.picture) }, "", to);
      if (how !== "replace") this.typing = how === "typing";
      this.arrived = false;
    }
    this.become(next);
  }

  /** The picture that is open is closed. */
  close() {
    if (!this.state.picture || this.closing) return; // asked twice, it is one step back all the same
    if (history.state?.opened) {
      this.closing = true;
      history.back();
    } else this.set({ picture: "" }, "replace");
  }

  /** Keeps with this step of the history where one was. @param {{y: number, count: number}} place */
  keep(place) {
    history.replaceState({ ...history.state, ...place }, "");
  }

  /** What is typed from now on is another step. */
  settle() {
    this.typing = false;
  }

  /** @param {State} next */
  become(next) {
    const before = this.state;
    this.state = this.possible(next);
    this.closing = false;
    for (const listener of this.listeners) listener(this.state, before);
  }
}
