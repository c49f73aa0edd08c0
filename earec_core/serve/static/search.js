// Items by words of their titles.
import * as api from "./api.js";
import { byId, shown } from "./dom.js";
import { line } from "./lines.js";

const PAGE = 20;
const results = byId("search-results");
const more = byId("search-more");
let words = "";

function find(from) {
  return shown(
    byId("search-status"),
    "Searching …",
    () => api.items(words, from, PAGE),
    (page) => {
      const first = page.items.map((item) => line(item));
      if (from) results.append(...first);
      else results.replaceChildren(...first);
      more.hidden = results.children.length >= page.total;
      if (from) first[0]?.querySelector("button").focus();
      return page.total ? `${page.total} found, ${results.children.length} shown.` : "No title has these words.";
    },
  );
}

export function start() {
  byId("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    words = byId("search-words").value;
    find(0);
  });
  more.addEventListener("click", () => find(results.children.length));
}
