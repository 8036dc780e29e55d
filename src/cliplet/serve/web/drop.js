// Pictures from outside: dropped anywhere on the page, pasted, or chosen.

import { byId } from "./dom.js";
import { DRAGGED } from "./tile.js";
import { counted } from "./words.js";

const MOST = 4; // at a time

/**
 * @param {{files: (files: File[]) => void, picture: (id: string) => void, refused: (message: string) => void,
 *   told: (message: string) => void}} take
 */
export function watch(take) {
  const shade = byId("drop");
  let depth = 0;
  const usable = (event) => {
    const types = [...(event.dataTransfer?.types ?? [])];
    return types.includes("Files") || types.includes(DRAGGED) || types.includes("text/uri-list");
  };
  addEventListener("dragenter", (event) => {
    if (!usable(event) || modal()) return;
    depth += 1;
    shade.hidden = false;
  });
  addEventListener("dragover", (event) => {
    if (usable(event)) event.preventDefault(); // or the browser would leave the page for the picture
  });
  addEventListener("dragleave", () => {
    depth = Math.max(0, depth - 1);
    if (!depth) shade.hidden = true;
  });
  const over = () => {
    depth = 0;
    shade.hidden = true;
  };
  addEventListener("dragend", over);
  addEventListener("drop", (event) => {
    over();
    if (!usable(event)) return;
    event.preventDefault();
    if (modal()) return;
    const own = event.dataTransfer?.getData(DRAGGED);
    if (own) take.picture(own);
    else given([...(event.dataTransfer?.files ?? [])], take);
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length || modal()) return; // words go where the cursor is
    event.preventDefault();
    given(files, take);
  });
  const chooser = byId("file");
  chooser.addEventListener("change", () => {
    const files = [...chooser.files];
    chooser.value = ""; // the same one can be chosen again
    given(files, take);
  });
}

/** Opens the browser's dialog for files. */
export const choose = () => byId("file").click();

const modal = () => document.querySelector("dialog[open]") !== null;

function given(files, take) {
  // Browsers do not know every kind of picture by name; what has none, the service looks at.
  const pictures = files.filter((file) => !file.type || file.type.startsWith("image/"));
  if (!pictures.length) {
    take.refused(files.length ? "That is not a picture." : "Only files can be dropped here: save the picture first.");
    return;
  }
  const beyond = pictures.length - MOST;
  const others = files.length - pictures.length;
  const left = [
    beyond > 0 && `${leftOut(beyond)}: no more than ${MOST} are taken at a time.`,
    others > 0 && (others === 1 ? "1 file is no picture." : `${others} files are no pictures.`),
  ].filter(Boolean);
  if (left.length) take.told(left.join(" "));
  take.files(pictures.slice(0, MOST));
}

/** @param {number} count */
export const leftOut = (count) => `${counted(count, "picture was", "pictures were")} left out`;
