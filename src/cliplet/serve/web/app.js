// The page: its parts put together.

import * as api from "./api.js";
import { CaptionsView } from "./captions.js";
import { Chips, FULL } from "./chips.js";
import { byId, debounced, isField, plainly } from "./dom.js";
import * as drop from "./drop.js";
import { FiltersPanel } from "./filters.js";
import { JudgeView } from "./judge.js";
import * as libraries from "./libraries.js";
import { Results } from "./results.js";
import { SearchView, titleOf } from "./search.js";
import { Store, address, newChip, usual } from "./state.js";
import * as token from "./token.js";
import * as trouble from "./trouble.js";
import * as uploads from "./uploads.js";
import { Viewer } from "./viewer.js";

const SETTLED = 1500; // milliseconds after which further typing is another step of the history
const NOTHING = { q: "", chips: [], filters: {}, by: /** @type {""} */ (""), of: null, picture: "" };

/** @type {api.LibraryFacts[]} */
let all = [];
/** @type {HTMLElement|null} */
let opener = null; // what gets the focus back
let choice = 0; // how many times a library was chosen

const store = new Store();
const library = () => all.find(({ name }) => name === store.state.library);
const page = { library, open, like, announce, choose: drop.choose };
const filters = new FiltersPanel(store);
const results = new Results(store, (message) => filters.refuse(message));
const search = new SearchView(store, results, page);
new JudgeView(store, results, page);
const captions = new CaptionsView(store, page);
const chips = new Chips(store);
new Viewer(store, {
  list: () => (store.state.view === "captions" ? captions.pictures() : (results.feed?.hits ?? [])),
  more: () => (store.state.view === "captions" ? Promise.resolve() : results.more()),
  like,
  captions: (id) => store.set({ view: "captions", of: { kind: "id", value: id }, picture: "" }),
  hasCaptions: () => library()?.captions ?? false,
  near: (latitude, longitude) => filter({ near: `${latitude}, ${longitude}` }),
  tag: (tag) => filter({ tag }),
  closed,
  announce,
});

history.scrollRestoration = "manual"; // rows are drawn later than browsers scroll
token.watch(trouble.retry);
trouble.watch();
drop.watch({
  files: dropped,
  picture: like,
  refused: (message) => trouble.show(new api.Problem(400, message)),
  told: trouble.tell,
});
store.possible = (state) => {
  const served = all.find(({ name }) => name === state.library);
  return served && !served.captions && state.by ? { ...state, by: "" } : state; // nothing would be found, ever
};
store.listen(show);
box();
keys();
start();

async function start() {
  try {
    await token.fromAddress();
    all = await api.libraries();
  } catch (error) {
    trouble.show(error, start);
    return;
  }
  trouble.hide();
  libraries.draw(all, chooseLibrary);
  usual.library = all[0]?.name ?? "";
  const { state } = store;
  const known = !state.library || all.some(({ name }) => name === state.library);
  store.become({ ...state, library: known ? state.library || usual.library : usual.library });
  if (!all.length) trouble.show(new api.Problem(0, "No library is served"));
  else if (!known) trouble.show(new api.Problem(404, `There is no library ${state.library} here`));
}

/** What all views have in common. */
function show(state, before) {
  const field = byId("q");
  if (field.value !== state.q) field.value = state.q;
  byId("clear").hidden = !state.q;
  const word = state.view === "pictures" ? "A caption, word for word" : "Describe a picture";
  field.placeholder = word;
  byId("query").hidden = state.view === "captions";
  if (state.view === "captions") filters.open(false);
  for (const view of ["search", "captions", "pictures"]) byId(`${view}-view`).hidden = state.view !== view;
  for (const link of byId("views").children) {
    const view = link.dataset.view;
    link.href = address({ ...state, view, picture: "" });
    if (view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = titleOf(state);
  const served = library();
  if (served && (state.library !== before.library || !before.library || byId("libraries").dataset.of !== served.name)) {
    byId("libraries").dataset.of = served.name;
    libraries.mark(served);
    filters.library(served);
    search.welcome(served);
  }
  if (state.view === before.view) return;
  // Results that were found for another view are shown in this one too.
  results.tell(true);
  scrollTo({ top: store.arrived ? (history.state?.y ?? 0) : 0, behavior: "instant" });
}

function box() {
  const field = byId("q");
  const settle = debounced(() => store.settle(), SETTLED);
  field.addEventListener("input", (event) => {
    if (event.isComposing) return; // letters that are still being put together
    store.set({ q: field.value }, "typing");
    settle();
  });
  field.addEventListener("compositionend", () => store.set({ q: field.value }, "typing"));
  field.addEventListener("blur", () => store.settle());
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && field.value) {
      event.preventDefault();
      clear();
    } else if (event.key === "ArrowDown" && store.state.view === "search") {
      event.preventDefault();
      search.enter();
    }
  });
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    results.soon.now();
    store.settle();
  });
  byId("clear").addEventListener("click", clear);
  byId("choose").addEventListener("click", drop.choose);
  byId("home").addEventListener(
    "click",
    plainly(() => store.set({ ...NOTHING, view: "search" })),
  );
  for (const link of byId("views").children) {
    link.addEventListener(
      "click",
      plainly(() => store.set({ view: link.dataset.view, picture: "" })),
    );
  }
}

function clear() {
  store.set({ q: "" });
  byId("q").focus();
}

function keys() {
  byId("keys-button").addEventListener("click", () => byId("keys").showModal());
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isField(event.target)) return;
    if (document.querySelector("dialog[open]")) return;
    if (event.key === "/" && !byId("query").hidden) {
      event.preventDefault();
      byId("q").focus();
      byId("q").select();
    } else if (event.key === "?") {
      byId("keys").showModal();
    }
  });
}

function open(id, from) {
  opener = from;
  store.set({ picture: id });
}

function closed(id) {
  if (store.state.view === "search" && search.focus(id)) return;
  if (opener?.isConnected) opener.focus();
  else byId("results").focus({ preventScroll: true });
}

function like(id) {
  if (store.state.view === "captions" && !store.state.picture) {
    store.set({ of: { kind: "id", value: id } });
    return;
  }
  const refused = chips.add("id", id);
  if (!refused) {
    announce("More like this picture.");
    return;
  }
  // The query that it is a term of, or that is full, is behind the viewer.
  if (store.state.view === "captions") store.set({ view: "search", picture: "" });
  else store.close();
  trouble.tell(refused);
}

function filter(change) {
  store.set({ view: "search", picture: "", filters: { ...store.state.filters, ...change } });
}

/** Pictures from outside become terms, or the one whose captions are looked for. */
async function dropped(files) {
  const { library: to, view } = store.state;
  const alone = view === "captions";
  const left = files.slice(0, alone ? 1 : files.length);
  if (left.length < files.length) trouble.tell("Captions are looked for one picture at a time: the first is taken.");
  byId("progress").hidden = false;
  try {
    for (; left.length && (alone || !chips.full); left.shift()) {
      const value = await uploads.add(to, left[0], left[0].name);
      trouble.hide();
      if (alone) store.set({ of: { kind: "upload", value } });
      else chips.add("upload", value);
    }
    if (left.length) trouble.tell(`${drop.leftOut(left.length)}. ${FULL}`);
  } catch (error) {
    const passing = error instanceof api.Problem && [0, 429, 503].includes(error.status);
    trouble.show(error, passing ? () => dropped(left) : null); // what was taken is not taken twice
  }
  byId("progress").hidden = results.asked === results.feed;
}

/** Another library, the same query. Pictures of the one are strangers to the other, which gets them handed in. */
async function chooseLibrary(name) {
  const { library: from, of, chips: old } = store.state;
  choice += 1;
  const mine = choice;
  const carried = async (term) => {
    if (term.kind !== "id" || name === from) return term;
    return { ...term, kind: "upload", value: await uploads.carry(from, term.value, name) };
  };
  try {
    const kept = [];
    for (const chip of old) {
      const { kind, value, weight } = await carried(chip);
      kept.push(newChip(kind, value, weight));
    }
    const subject = of ? await carried(of) : null;
    // Sending takes a while, in which another library may have been chosen; the last choice counts.
    if (mine === choice) store.set({ library: name, chips: kept, of: subject, picture: "" });
  } catch (error) {
    if (mine !== choice) return;
    libraries.mark(library());
    trouble.show(error, () => chooseLibrary(name));
  }
}

/** Tells those who do not see the page. What is outside of an open dialog is not read out. */
function announce(text) {
  byId(byId("viewer").open ? "viewer-status" : "status").textContent = text;
}
