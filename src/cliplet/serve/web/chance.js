// A picture of the library by chance, to try a model on.

import * as api from "./api.js";

const TRIES = 6;

/**
 * @param {import("./api.js").LibraryFacts|undefined} library
 * @returns {Promise<{id: string, caption: string}|null>} a picture that has captions, and one of them
 */
export async function anyCaptioned(library) {
  const held = Math.min(library?.pictures ?? 0, api.DEEPEST);
  for (let tries = 0; library && held && tries < TRIES; tries += 1) {
    const offset = Math.floor(Math.random() * held);
    const [hit] = (await api.newest(library.name, { k: 1, offset, where: "" })).hits;
    const captions = /** @type {any} */ (hit)?.captions ?? [];
    if (captions.length) return { id: hit.id, caption: captions[Math.floor(Math.random() * captions.length)] };
  }
  return null;
}
