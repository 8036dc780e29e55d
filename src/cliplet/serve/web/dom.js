// Building elements. Text is only ever set as text: nothing here parses HTML, so no name or caption can become markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An element with properties and children.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Object<string, any>} [props] `class`, `on: {event: handler}`, `data: {}`; names with a dash and `role` become
 *   attributes, everything else is set as a property
 * @param {...(Node|string|null|undefined|false)} children
 * @returns {HTMLElementTagNameMap[T]}
 */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "class") node.className = value;
    else if (name === "on") for (const [event, handler] of Object.entries(value)) node.addEventListener(event, handler);
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name.includes("-") || name === "role" || name === "for") node.setAttribute(name, String(value));
    else node[name] = value;
  }
  for (const child of children) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

/**
 * One of the pictures of icons.svg.
 * @param {string} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  svg.append(use);
  return svg;
}

/**
 * @param {string} id
 * @returns {any} the element of the page with that id
 */
export const byId = (id) => document.getElementById(id);

/**
 * Whether keys that are pressed now belong to a field.
 * @param {EventTarget|null} target
 */
export function isField(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target instanceof HTMLInputElement) return !["checkbox", "radio", "button", "submit"].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}

/**
 * What a plain click on a link does; with Ctrl, Shift or the middle button the browser opens the link's address.
 * @param {(link: HTMLElement) => void} work
 * @returns {(event: MouseEvent) => void}
 */
export const plainly = (work) => (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  work(/** @type {HTMLElement} */ (event.currentTarget));
};

/**
 * Calls `work` once, when it has not been asked for during `wait` milliseconds. `now()` does it at once if it is due.
 * @param {() => void} work
 * @param {number} wait
 */
export function debounced(work, wait) {
  let timer = 0;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      timer = 0;
      work();
    }, wait);
  };
  later.now = () => {
    if (!timer) return;
    later.cancel();
    work();
  };
  later.cancel = () => {
    clearTimeout(timer);
    timer = 0;
  };
  return later;
}

/**
 * Copies text, also where the page is not served over TLS and browsers offer no clipboard.
 * @param {string} text
 * @param {Element} beside an element near which a field may be put for a moment
 * @returns {Promise<boolean>} whether it worked
 */
export async function copy(text, beside) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = el("textarea", { value: text, class: "unseen", "aria-hidden": "true" });
    const focused = document.activeElement;
    beside.after(field); // in an open dialog nothing outside of it can be selected
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    if (focused instanceof HTMLElement) focused.focus();
    return done;
  }
}
