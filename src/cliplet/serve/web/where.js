// The filters as one expression in the service's language.

/** @typedef {import("./state.js").Filters} Filters */

/** Kilometres around a place, if nothing else is said. */
export const NEAR = 10;

/** @param {string} text @returns {string} as the language writes texts */
const quoted = (text) => `'${text.replaceAll("'", "''")}'`;

/** Texts with this in them. `%` is any letters there and has no escape, so one that is meant is any one letter. */
const containing = (text) => `like ${quoted(`%${text.replaceAll("%", "_")}%`)}`;

/**
 * What a person writes as a number, with a comma or a point; null where it is none, or below 0.
 * @param {string|undefined} text
 * @returns {number|null}
 */
export const number = (text) => (/^\s*\d+([.,]\d+)?\s*$/.test(text ?? "") ? Number(text.replace(",", ".")) : null);

/**
 * Latitude and longitude out of "48.2, 16.37".
 * @param {string} text
 * @returns {[number, number]|null}
 */
export function coordinates(text) {
  const parts = (text ?? "")
    .split(/[,;\s]+/)
    .filter(Boolean)
    .map(Number);
  const fits = parts.length === 2 && Math.abs(parts[0]) <= 90 && Math.abs(parts[1]) <= 180;
  return fits ? [parts[0], parts[1]] : null;
}

/** The conditions of the fields. @param {Filters} filters @returns {string[]} */
function conditions(filters) {
  const centre = coordinates(filters.near ?? "");
  const least = (column, text) => number(text) !== null && `${column} >= ${number(text)}`;
  return [
    least("year", filters.from),
    number(filters.to) !== null && `year <= ${number(filters.to)}`,
    least("width", filters.width),
    least("height", filters.height),
    filters.format && `format = ${quoted(filters.format)}`,
    filters.caption && `caption ${containing(filters.caption)}`,
    filters.tag && `tag ${containing(filters.tag)}`,
    filters.camera && `camera ${containing(filters.camera)}`,
    centre && `near(${centre[0]}, ${centre[1]}, ${number(filters.km) ?? NEAR})`,
  ].filter((part) => typeof part === "string" && part !== "");
}

/** @param {Filters} filters @returns {string} "" where there is no filter */
export function expression(filters) {
  const parts = conditions(filters);
  const own = filters.where?.trim();
  if (!own) return parts.join(" and ");
  return parts.length ? [`(${own})`, ...parts].join(" and ") : own;
}

/**
 * An error of the service, whose places are those of the whole expression, as one of what was typed.
 * @param {string} message
 * @param {Filters} filters
 */
export function placed(message, filters) {
  const before = filters.where?.trim() && conditions(filters).length ? 1 : 0; // the parenthesis
  return message.replace(/at character (\d+)/, (_, place) => `at character ${Number(place) - before}`);
}
