// One picture, large, with all that is known of it.

import * as api from "./api.js";
import { byId, el, icon, isField } from "./dom.js";
import { factList, scoreLists } from "./facts.js";
import { terms } from "./terms.js";
import { seen } from "./words.js";
import { Zoom } from "./zoom.js";

/**
 * @typedef {{list: () => {id: string, name: string, width: number, height: number}[], more: () => Promise<void>,
 *   like: (id: string) => void, captions: (id: string) => void, hasCaptions: () => boolean,
 *   near: (latitude: number, longitude: number) => void,
 *   tag: (tag: string) => void, closed: (id: string) => void, announce: (text: string) => void}} Around
 */

export class Viewer {
  /** @param {import("./state.js").Store} store @param {Around} around */
  constructor(store, around) {
    this.store = store;
    this.around = around;
    this.dialog = byId("viewer");
    this.image = byId("shot");
    this.shown = ""; // id of the picture
    this.stop = new AbortController();
    this.zoom = new Zoom(byId("stage"), this.image, {
      changed: (zoomed) => byId("zoom").setAttribute("aria-pressed", String(zoomed)),
      swiped: (step) => this.step(step),
    });
    byId("zoom").addEventListener("click", () => this.zoom.toggle());
    byId("close").addEventListener("click", () => store.close());
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault(); // the address decides what is open
      if (this.zoom.zoomed) this.zoom.toggle(false);
      else store.close();
    });
    // Browsers close a dialog whose cancelling was prevented once, at the second Escape.
    this.dialog.addEventListener("close", () => this.shown && store.close());
    this.dialog.addEventListener("keydown", (event) => this.key(event));
    store.listen((state, before) => this.update(state, before));
  }

  /** @param {import("./state.js").State} state @param {import("./state.js").State} before */
  update(state, before) {
    const library = state.library !== before.library;
    if (state.picture && state.library) {
      if (state.picture !== this.shown || library) this.show(state);
    } else if (this.shown) {
      const last = this.shown;
      this.shown = "";
      this.stop.abort();
      this.dialog.close();
      this.image.removeAttribute("src");
      this.around.closed(last);
    }
  }

  async show(state) {
    const id = state.picture;
    this.shown = id;
    this.stop.abort();
    this.stop = new AbortController();
    const { signal } = this.stop;
    const known = this.around.list().find((hit) => hit.id === id);
    // Buttons that go away would take the focus with them, out of the dialog, where no key is heard.
    if (byId("about").contains(document.activeElement)) this.hold();
    byId("viewer-name").replaceChildren(el("bdi", {}, known ? seen(known.name) : "…"));
    byId("viewer-actions").replaceChildren();
    byId("viewer-scores").replaceChildren();
    byId("viewer-facts").replaceChildren();
    byId("viewer-note").hidden = true;
    byId("about").scrollTop = 0;
    if (known?.width) this.picture(state.library, known, signal);
    else this.image.removeAttribute("src");
    if (!this.dialog.open) {
      this.dialog.showModal();
      this.hold();
    }
    this.steps();
    try {
      const record = await api.picture(state.library, id, signal);
      if (!known?.width) this.picture(state.library, { ...record, id }, signal);
      this.told(state.library, { ...record, id });
      const words = terms(state).flatMap(({ text, weight }) => (text && weight > 0 ? [text] : []));
      const scores = await api.scores(state.library, id, words, signal);
      byId("viewer-scores").replaceChildren(...scoreLists(scores));
    } catch (error) {
      if (!signal.aborted) this.failed(error, state);
    }
  }

  /** The focus, where it disturbs nothing and keys are heard. */
  hold() {
    byId("about").focus({ preventScroll: true });
  }

  failed(error, state) {
    const line = error instanceof api.Problem ? error.line : "The page failed at this.";
    const again = el("button", { type: "button", class: "plain", on: { click: () => this.show(state) } }, "Try again");
    byId("viewer-scores").replaceChildren(el("p", { class: "wrong", role: "alert" }, line), again);
    if (!(error instanceof api.Problem)) console.error(error);
  }

  /** The thumbnail at once, for it is here already; the file itself as soon as it is there. */
  picture(library, { id, width, height }, signal) {
    this.zoom.set(width, height);
    byId("stage").classList.remove("whole");
    this.image.src = api.thumbnail(library, id);
    const whole = new Image();
    whole.src = api.original(library, id);
    whole.decode().then(
      () => {
        if (signal.aborted) return;
        this.image.src = whole.src;
        byId("stage").classList.add("whole");
        this.ready(library);
      },
      () => this.explain(library, id, signal),
    );
  }

  /** Why the file itself is not shown. */
  async explain(library, id, signal) {
    if (signal.aborted) return;
    const problem = await api.missing(library, id, signal).catch(() => null);
    if (signal.aborted) return;
    const note = byId("viewer-note");
    note.textContent = problem?.line ?? "This browser cannot show the file itself, so its thumbnail is shown.";
    note.hidden = false;
  }

  /** The thumbnails beside, so that the next step shows something at once. */
  ready(library) {
    const list = this.around.list();
    const place = list.findIndex(({ id }) => id === this.shown);
    for (const hit of [list[place + 1], list[place - 1]]) {
      if (hit && place >= 0) new Image().src = api.thumbnail(library, hit.id);
    }
  }

  told(library, record) {
    const { around } = this;
    const name = seen(record.name);
    byId("viewer-name").replaceChildren(el("bdi", {}, name));
    this.image.alt = record.captions[0] ? seen(record.captions[0]) : name;
    const button = (label, picture, click, title) =>
      el("button", { type: "button", class: "plain", title, on: { click } }, icon(picture), label);
    const link = (label, picture, properties) =>
      el("a", { class: "plain", href: api.original(library, record.id), ...properties }, icon(picture), label);
    byId("viewer-actions").replaceChildren(
      button("More like this", "like", () => around.like(record.id), "m"),
      ...(around.hasCaptions() ? [button("Fitting captions", "text", () => around.captions(record.id))] : []),
      link("Original", "open", { target: "_blank", rel: "noopener" }),
      link("Download", "save", { download: record.name }),
    );
    byId("viewer-facts").replaceChildren(
      ...factList(record, {
        near: around.near,
        tag: around.tag,
        copied: (done) => around.announce(done ? "The path was copied." : "The path could not be copied."),
      }),
    );
    around.announce(this.position(name));
  }

  position(name) {
    const list = this.around.list();
    const place = list.findIndex(({ id }) => id === this.shown);
    return place < 0 ? name : `${name}, picture ${place + 1}`;
  }

  /** @param {boolean} [more] whether more pictures are asked for where these come to an end */
  steps(more = true) {
    const list = this.around.list();
    const place = list.findIndex(({ id }) => id === this.shown);
    this.offer(byId("previous"), place > 0);
    this.offer(byId("next"), place >= 0 && place < list.length - 1);
    if (more && place >= list.length - 5) this.around.more().then(() => this.shown && this.steps(false));
  }

  offer(button, yes) {
    if (!yes && button === document.activeElement) this.hold();
    button.hidden = !yes;
  }

  /** @param {1|-1} step */
  step(step) {
    const list = this.around.list();
    const place = list.findIndex(({ id }) => id === this.shown);
    const next = place < 0 ? undefined : list[place + step];
    if (next) this.store.set({ picture: next.id }, "replace");
  }

  key(event) {
    if (isField(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = event.key.startsWith("Arrow");
    if (arrow && this.zoom.zoomed) this.zoom.nudge(event.key);
    else if (event.key === "ArrowLeft") this.step(-1);
    else if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "z") this.zoom.toggle();
    else if (event.key === "m" && this.shown) this.around.like(this.shown);
    else return;
    event.preventDefault();
  }
}
