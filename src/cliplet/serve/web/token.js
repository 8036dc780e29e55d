// The token of a service that others can reach: from the address, once, or asked for.

import * as api from "./api.js";
import { byId } from "./dom.js";

const WRONG = "This is not the token.";

/** @type {Promise<boolean>|null} */
let asking = null;

/** Ends the dialog that asks, if it is open. @type {(known: boolean) => void} */
let end = () => {};

/**
 * From now on a request that needs the token asks for it, and one that is put into the address of this tab is used.
 * @param {() => void} arrived called when one was, and no dialog waits for it
 */
export function watch(arrived) {
  addEventListener("hashchange", async () => {
    const known = await fromAddress();
    if (known === null) return;
    if (!asking) arrived();
    else if (known) end(true);
    else byId("token-error").textContent = WRONG;
  });
  api.access.ask = () => {
    asking ??= asked().finally(() => {
      asking = null;
    });
    return asking;
  };
}

/**
 * Uses a token that stands in the address as #token=..., and takes it out of there.
 * @returns {Promise<boolean|null>} whether the service took it; null where there was none
 */
export async function fromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token === null) return null;
  // At once: it is not to stay in the history, whatever comes of it.
  history.replaceState(history.state, "", location.pathname + location.search);
  try {
    await api.session(token);
    return true;
  } catch (error) {
    if (!(error instanceof api.Problem)) throw error;
    return false; // it is asked for when it is needed, and then its error is told
  }
}

/** @returns {Promise<boolean>} whether the service knows this browser now */
function asked() {
  const dialog = byId("token");
  const field = byId("token-field");
  const told = byId("token-error");
  const opener = document.activeElement;
  told.textContent = "";
  field.value = "";
  dialog.showModal();
  field.focus();
  return new Promise((resolve) => {
    end = (known) => {
      end = () => {};
      dialog.close();
      byId("token-form").onsubmit = byId("token-cancel").onclick = dialog.oncancel = null;
      if (opener instanceof HTMLElement) opener.focus();
      resolve(known);
    };
    byId("token-cancel").onclick = () => end(false);
    dialog.oncancel = (event) => {
      event.preventDefault();
      end(false);
    };
    byId("token-form").onsubmit = async (event) => {
      event.preventDefault();
      told.textContent = "";
      try {
        await api.session(field.value.trim());
        end(true);
      } catch (error) {
        told.textContent = error.status === 401 ? WRONG : (error.line ?? "The page failed at this.");
        field.select();
      }
    };
  });
}
