// Thumbnails that wait their turn: a service that is asked for many at once says to some that it is busy.

import * as api from "./api.js";
import { el } from "./dom.js";

const WAITS = [1, 4]; // seconds before it is asked for again
const LONGEST = 10;

/**
 * The image of a picture's thumbnail. What stands around it, a tile or a frame, has the class `there` once it can be
 * seen, and `broken` where it cannot.
 * @param {string} library
 * @param {{id: string, width?: number, height?: number}} picture
 * @param {HTMLImageElement|null} [before] one that may show the same already, so that nothing flickers
 * @returns {HTMLImageElement}
 */
export function thumb(library, { id, width, height }, before = null) {
  const url = api.thumbnail(library, id);
  if (before?.getAttribute("src") === url && before.complete && before.naturalWidth) return before;
  const image = el("img", { alt: "", loading: "lazy", decoding: "async", width, height });
  image.addEventListener("load", () => {
    around(image)?.add("there");
    around(image)?.remove("broken");
  });
  image.addEventListener("error", () => {
    around(image)?.add("broken");
    again(image, url, 0);
  });
  image.src = url;
  return image;
}

// Looked for anew each time: an image moves from one tile to the next.
const around = (image) => image.closest(".tile, .thumb")?.classList;

/** An image does not tell why it failed, so it is asked for by itself; what is gone is not asked for once more. */
function again(image, url, tries, wait = 0) {
  if (tries >= WAITS.length) return;
  const seconds = Math.min(LONGEST, Math.max(wait, WAITS[tries])) * (1 + Math.random() / 2); // not all at once
  setTimeout(async () => {
    if (!image.isConnected) return; // scrolled away; it is asked for anew when it comes back
    const response = await fetch(url, { credentials: "same-origin" }).catch(() => null);
    await response?.blob().catch(() => null);
    const busy = !response || [429, 503].includes(response.status);
    if (response?.ok) image.src = url;
    else if (busy) again(image, url, tries + 1, Number(response?.headers.get("retry-after")) || 0);
  }, 1000 * seconds);
}
