// The page: what the service serves, then whatever the address says is looked at.
import * as api from "./api.js";
import { byId, shown } from "./dom.js";
import * as history from "./history.js";
import * as item from "./item.js";
import * as map from "./map.js";
import * as search from "./search.js";
import * as state from "./state.js";

function look() {
  const now = state.read();
  item.show(now.item);
  history.show(now);
  map.mark(now.item);
}

function begin(about) {
  search.start();
  item.start();
  history.start(about);
  map.start();
  window.addEventListener("hashchange", look);
  look();
  const { catalog, items, users, modalities } = about;
  return `${catalog}: ${items} items, ${users} users; the model reads ${modalities.join(", ")}.`;
}

const status = byId("about");
const waiting = (sentence) => (status.textContent = sentence);
shown(status, "The service is asked what it serves.", () => api.ready(waiting).then(api.about), begin);
