// Pictures that were dropped here. The service forgets them after some minutes, and every library counts its own; so
// this browser keeps the last few, to show them after a reload and to hand them in again.

import * as api from "./api.js";

const KEPT = 24;
const NAME = "cliplet";
const TABLE = "uploads";
const LARGE = 8e6; // bytes; a larger file is sent smaller, for models look at a few hundred pixels
const SIDE = 2048;

/** @type {Map<string, {blob: Blob, name: string, at: number, library: string}>} */
const known = new Map();
/** Tokens that stand for one another, as "library token". @type {Map<string, string>} */
const renewed = new Map();
/** @type {Map<string, string>} */
const urls = new Map();

/**
 * Hands the service a picture.
 * @param {string} library
 * @param {Blob} blob
 * @param {string} name
 * @returns {Promise<string>} by what it is called from now on
 */
export async function add(library, blob, name) {
  const sent = await sendable(blob);
  const { upload } = await api.upload(library, sent, name);
  const entry = { blob: sent, name, at: Date.now(), library };
  known.set(upload, entry);
  await remember(upload, entry);
  return upload;
}

/**
 * The same for a picture of a library, which another library does not hold.
 * @param {string} from
 * @param {string} id
 * @param {string} to
 */
export async function carry(from, id, to) {
  const response = await fetch(api.original(from, id), { credentials: "same-origin" });
  if (!response.ok) throw new api.Problem(response.status, "The picture cannot be taken to the other library");
  return add(to, await response.blob(), "picture");
}

/**
 * Does `work` with the terms as this library knows them. Where the service no longer knows a picture, it is handed in
 * again, once.
 * @template T
 * @param {string} library
 * @param {api.Term[]} terms
 * @param {(terms: api.Term[]) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function withUploads(library, terms, work) {
  const own = terms.flatMap((term) => (term.upload ? [term.upload] : []));
  await Promise.all(own.map((token) => introduce(library, token)));
  const current = () => terms.map((term) => (term.upload ? { ...term, upload: tokenIn(library, term.upload) } : term));
  try {
    return await work(current());
  } catch (error) {
    const forgotten = error instanceof api.Problem && error.status === 404;
    if (!forgotten || !own.length || !(await Promise.all(own.map((token) => again(library, token)))).some(Boolean)) {
      throw error;
    }
    return work(current());
  }
}

/** Hands a picture to a library that has not seen it, if this browser knows where it was handed in. */
async function introduce(library, token) {
  if (renewed.has(`${library} ${token}`)) return;
  const entry = await recall(token);
  if (entry && entry.library !== library) await again(library, token);
}

const tokenIn = (library, token) => renewed.get(`${library} ${token}`) ?? token;

async function again(library, token) {
  const entry = await recall(token);
  if (!entry) return false;
  const { upload } = await api.upload(library, entry.blob, entry.name);
  renewed.set(`${library} ${token}`, upload);
  return true;
}

/**
 * @param {string} token
 * @returns {Promise<{url: string, name: string}|null>} an address to show the picture under; null where it is gone
 */
export async function shown(token) {
  const entry = await recall(token);
  if (!entry) return null;
  if (!urls.has(token)) urls.set(token, URL.createObjectURL(entry.blob));
  return { url: urls.get(token) ?? "", name: entry.name };
}

/** A picture that is small enough to be sent soon: the file itself, or a smaller one where this browser can read it. */
async function sendable(blob) {
  if (blob.size <= LARGE) return blob;
  try {
    const bitmap = await createImageBitmap(blob);
    const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return await new Promise((resolve) => canvas.toBlob((smaller) => resolve(smaller ?? blob), "image/jpeg", 0.92));
  } catch {
    return blob;
  }
}

async function recall(token) {
  const here = known.get(token);
  if (here) return here;
  const entry = await stored((table) => table.get(token), "readonly");
  if (entry) known.set(token, entry);
  return entry ?? null;
}

async function remember(token, entry) {
  await stored((table) => table.put(entry, token), "readwrite");
  const all = (await stored((table) => table.getAllKeys(), "readonly")) ?? [];
  if (all.length <= KEPT) return;
  const entries = await Promise.all(all.map(async (key) => ({ key, at: (await recall(key))?.at ?? 0 })));
  for (const { key } of entries.sort((a, b) => b.at - a.at).slice(KEPT)) {
    known.delete(key);
    await stored((table) => table.delete(key), "readwrite");
  }
}

/** One request to the browser's store; undefined where there is none, as in some private windows. */
function stored(request, mode) {
  return new Promise((resolve) => {
    let opening;
    try {
      opening = indexedDB.open(NAME, 1);
    } catch {
      resolve(undefined);
      return;
    }
    opening.onupgradeneeded = () => opening.result.createObjectStore(TABLE);
    opening.onerror = () => resolve(undefined);
    opening.onblocked = () => resolve(undefined);
    opening.onsuccess = () => {
      const database = opening.result;
      try {
        const asked = request(database.transaction(TABLE, mode).objectStore(TABLE));
        asked.onsuccess = () => resolve(asked.result);
        asked.onerror = () => resolve(undefined);
        asked.transaction.oncomplete = asked.transaction.onabort = () => database.close();
      } catch {
        database.close(); // one of that name without the table: not ours, and no reason to wait
        resolve(undefined);
      }
    };
  });
}
