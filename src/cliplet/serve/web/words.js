// Numbers, dates and names as people read them.

const WHOLE = new Intl.NumberFormat("en");
const MONTHS = [
  "January",
  "February",
  "March",
  "April",
  "May",
  "June",
  "July",
  "August",
  "September",
  "October",
  "November",
  "December",
];

/** @param {number} value */
export const whole = (value) => WHOLE.format(value);

/**
 * @param {number} count
 * @param {string} word
 * @param {string} [many]
 */
export const counted = (count, word, many = `${word}s`) => `${whole(count)} ${count === 1 ? word : many}`;

/** @param {number} count in bytes */
export function bytes(count) {
  if (count < 1000) return counted(count, "byte");
  const units = ["kB", "MB", "GB"];
  let value = count / 1000;
  let unit = 0;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

/**
 * A camera's time, which knows no zone: it is shown as it stands.
 * @param {string} taken such as 2024-07-01T12:30:05
 */
export function date(taken) {
  const parts = /^(\d{4})-(\d\d)-(\d\d)(?:T(\d\d):(\d\d))?/.exec(taken);
  if (!parts || !MONTHS[Number(parts[2]) - 1]) return taken;
  const day = `${Number(parts[3])} ${MONTHS[Number(parts[2]) - 1]} ${parts[1]}`;
  return parts[4] ? `${day}, ${parts[4]}:${parts[5]}` : day;
}

/**
 * @param {number} latitude
 * @param {number} longitude
 */
export function place(latitude, longitude) {
  const north = `${Math.abs(latitude).toFixed(4)}° ${latitude < 0 ? "S" : "N"}`;
  return `${north}, ${Math.abs(longitude).toFixed(4)}° ${longitude < 0 ? "W" : "E"}`;
}

/**
 * A name with all its letters to be seen: line ends and other control characters as their pictures (␊), and the marks
 * that turn the direction of what follows, with which a name can pretend to be another, by their number.
 * @param {string} name
 */
export function seen(name) {
  return Array.from(name, (letter) => {
    const code = letter.codePointAt(0) ?? 0;
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    const turns = (code >= 0x202a && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
    if (turns || code === 0x2028 || code === 0x2029) return `[U+${code.toString(16).toUpperCase()}]`;
    return code >= 0xd800 && code <= 0xdfff ? "\ufffd" : letter;
  }).join("");
}

/** @param {number} value a cosine */
export const cosine = (value) => value.toFixed(3).replace("-", "−");

/** @param {number} value 0 to 100. All but the last of everyday queries is not all of them. */
export const fit = (value) => (value > 99.5 && value < 100 ? value.toFixed(1) : String(Math.round(value)));
