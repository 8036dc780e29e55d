// What is searched for: the words of the box and the chips beside it, as the terms that the service sums up.

import { counted } from "./words.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./api.js").Term} Term */

const MOST_WEIGHT = 100; // that the service takes
const BETWEEN = /\s+([+\-−–])\s+/;

const WEIGHT = /^(\d+(?:\.\d*)?|\.\d+)\*?\s+(?=\S)/;

/**
 * The words of the box, as the command line reads them. A plus or minus between blanks makes terms of what stands
 * around it, as in `beach + sunset - 0.5 people`; in quotation marks it is a letter like others.
 * @param {string} text
 * @returns {{text: string, weight: number}[]}
 */
export function parse(text) {
  const quoted = [];
  const open = text.replace(/"([^"]+)"/g, (_, inner) => `\u0000${quoted.push(inner) - 1}\u0000`);
  const parts = ` ${open.trim()}`.replace(/^ (?=[+\-−–]\s)/, "  ").split(BETWEEN);
  const terms = [];
  for (let at = 0; at < parts.length; at += 2) {
    // Without a sign, a number at the start belongs to the sentence: "2 dogs".
    const size = parts.length > 1 ? WEIGHT.exec(parts[at].trim()) : null;
    const bare = size ? parts[at].trim().slice(size[0].length) : parts[at];
    const words = bare.replace(/\u0000(\d+)\u0000/g, (_, number) => quoted[Number(number)]).trim();
    const weight = size ? Math.min(MOST_WEIGHT, Number(size[1])) : 1;
    if (words && weight) terms.push({ text: words, weight: at === 0 || parts[at - 1] === "+" ? weight : -weight });
  }
  return terms;
}

/**
 * All terms of a state, as the service takes them; none where nothing is searched for. A caption that is judged is
 * taken by the letter.
 * @param {State} state
 * @returns {Term[]}
 */
export function terms(state) {
  const typed = state.q.trim();
  const words = state.view === "pictures" ? [{ text: typed, weight: 1 }].filter((term) => term.text) : parse(typed);
  const chips = state.chips.filter((chip) => chip.value.trim());
  return [
    ...words,
    ...chips.map((chip) => ({ weight: Number(chip.weight.toFixed(2)), [chip.kind]: chip.value.trim() })),
  ];
}

/**
 * Terms as a person would say them; pictures, which have no words, by their number.
 * @param {Term[]} list
 */
export function said(list) {
  const words = list.flatMap(({ text, weight }, place) => {
    if (text === undefined) return [];
    return weight < 0 ? `without “${text}”` : `${place ? "with " : ""}“${text}”`;
  });
  const pictures = list.filter(({ text }) => text === undefined);
  const wanted = pictures.filter(({ weight }) => weight > 0).length;
  const unwanted = pictures.length - wanted;
  if (wanted) words.push(`with ${counted(wanted, "picture")}`);
  if (unwanted) words.push(`without ${counted(unwanted, "picture")}`);
  return words.join(", ");
}
