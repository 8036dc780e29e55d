// Where pictures stand: rows of equal height, filled from edge to edge, that keep every picture's shape.

/**
 * @typedef {{top: number, height: number, first: number, widths: number[]}} Row
 */

const SLIM = 0.4; // width over height; beyond these a picture is cropped, so that one panorama does not flatten a row
const WIDE = 3.2;

/**
 * @param {{width: number, height: number}} picture
 * @returns {number} width over height, within what a row can take
 */
export function shape({ width, height }) {
  const ratio = width > 0 && height > 0 ? width / height : 1;
  return Math.min(WIDE, Math.max(SLIM, ratio));
}

/**
 * Rows of pictures. Each new picture changes only the last row, so what stands stays.
 * @param {number[]} shapes width over height of each picture
 * @param {{width: number, target: number, gap: number, ended: boolean}} options pixels; `target` is the height that
 *   rows come close to. Until it has `ended`, a last row that is not full waits for its pictures.
 * @returns {Row[]}
 */
export function rows(shapes, { width, target, gap, ended }) {
  const made = [];
  let first = 0;
  let sum = 0;
  let top = 0;
  const close = (end, height) => {
    const edges = [0];
    let right = 0;
    for (let at = first; at < end; at += 1) edges.push((right += shapes[at]));
    // Rounded at the edges and not by width: so a row ends exactly where the others do.
    const left = (at) => Math.round(edges[at] * height) + at * gap;
    const widths = edges.slice(1).map((_, at) => left(at + 1) - gap - left(at));
    made.push({ top, height: Math.round(height), first, widths });
    top += Math.round(height) + gap;
    first = end;
    sum = 0;
  };
  const fitting = (count, total) => (width - gap * (count - 1)) / total;
  for (let at = 0; at < shapes.length; at += 1) {
    const before = at - first;
    const without = before ? fitting(before, sum) : Infinity;
    const along = fitting(before + 1, sum + shapes[at]);
    if (along > target) {
      sum += shapes[at];
      continue;
    }
    // The picture that fills the row goes into it or into the next, whichever leaves the height closer to the target.
    if (without / target < target / along) {
      close(at, without);
      sum = shapes[at];
      if (fitting(1, sum) <= target) close(at + 1, fitting(1, sum));
    } else {
      close(at + 1, along);
    }
  }
  if (ended && first < shapes.length) close(shapes.length, Math.min(target, fitting(shapes.length - first, sum)));
  return made;
}

/**
 * @param {Row[]} list
 * @param {number} y
 * @returns {number} the first row that ends below y
 */
export function rowAt(list, y) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle].top + list[middle].height > y) high = middle;
    else low = middle + 1;
  }
  return low;
}

/**
 * The row of a picture.
 * @param {Row[]} list
 * @param {number} index
 */
export function rowOf(list, index) {
  return list.findIndex((row) => index < row.first + row.widths.length);
}

/**
 * The picture that an arrow key leads to, by where pictures stand.
 * @param {Row[]} list
 * @param {number} index
 * @param {string} key as browsers name it
 * @param {number} gap
 * @returns {number} the same index where it leads nowhere
 */
export function neighbour(list, index, key, gap) {
  const last = list.length ? list[list.length - 1].first + list[list.length - 1].widths.length - 1 : -1;
  if (key === "ArrowLeft") return Math.max(0, index - 1);
  if (key === "ArrowRight") return Math.min(last, index + 1);
  const row = rowOf(list, index);
  if (row < 0) return index;
  if (key === "Home") return list[row].first;
  if (key === "End") return list[row].first + list[row].widths.length - 1;
  const step = { ArrowUp: -1, ArrowDown: 1, PageUp: -3, PageDown: 3 }[key] ?? 0;
  const to = Math.min(list.length - 1, Math.max(0, row + step));
  return to === row ? index : nearest(list[to], middle(list[row], index, gap), gap);
}

function middle(row, index, gap) {
  const before = row.widths.slice(0, index - row.first);
  return before.reduce((sum, width) => sum + width + gap, 0) + row.widths[index - row.first] / 2;
}

function nearest(row, x, gap) {
  let best = row.first;
  for (let at = row.first; at < row.first + row.widths.length; at += 1) {
    if (Math.abs(middle(row, at, gap) - x) < Math.abs(middle(row, best, gap) - x)) best = at;
  }
  return best;
}
