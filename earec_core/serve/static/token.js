// The service's bearer token, asked for once and kept until the tab is closed.
import { byId } from "./dom.js";

const KEY = "earec-token";
let asking = null;

export const token = () => sessionStorage.getItem(KEY);

// Whether there is another token now than the one that was used.
export async function askForToken(used) {
  if (token() === used) await (asking ??= asked(used !== null).finally(() => (asking = null)));
  return token() !== null && token() !== used;
}

function asked(wrong) {
  const dialog = byId("token");
  const input = byId("token-text");
  byId("token-wrong").textContent = wrong ? "The service does not take that token." : "";
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const done = new AbortController();
    const end = () => {
      done.abort();
      resolve();
    };
    byId("token-form").addEventListener(
      "submit",
      (event) => {
        event.preventDefault();
        sessionStorage.setItem(KEY, input.value);
        dialog.close();
      },
      { signal: done.signal },
    );
    dialog.addEventListener("close", end, { signal: done.signal });
  });
}
