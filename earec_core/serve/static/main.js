// The page: what the service serves, then whatever the address says is looked at.
import * as add from "./add.js";
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
  item.start(about);
  history.start(about);
  map.start();
  add.start(about, () => {
    shown(status, "The items are counted …", api.about, told);
    map.load();
  });
  window.addEventListener("hashchange", look);
  look();
  return told(about);
}

function told({ catalog, items, users, modalities }) {
  return `${catalog}: ${items} items, ${users} users; the model reads ${modalities.join(", ")}.`;
}

const status = byId("about");
const waiting = (sentence) => (status.textContent = sentence);
shown(status, "The service is asked what it serves.", () => api.ready(waiting).then(api.about), begin);
