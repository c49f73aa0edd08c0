// One item: its fields, its picture, what the model reads and says of it, what is like it.
import * as api from "./api.js";
import { button, byId, dropped, make, shown } from "./dom.js";
import { line, nameOf } from "./lines.js";
import * as nearest from "./nearest.js";
import { said } from "./said.js";
import * as state from "./state.js";
import * as weights from "./weights.js";

const LONG = 400;
const heading = byId("item-heading");
const body = byId("item-body");
let open = null;
let address = null;

export function show(id) {
  const asked = state.taken();
  if (id === open) {
    if (asked) heading.focus();
    return;
  }
  open = id;
  forget();
  if (id === null) {
    dropped(byId("item-status"), "Choose an item: search, or click on the map.");
    return;
  }
  shown(
    byId("item-status"),
    "Loading the item …",
    () => api.item(id),
    (item) => {
      fill(item);
      if (asked) heading.focus();
    },
  );
}

function forget() {
  body.hidden = true;
  heading.textContent = "Item";
  document.title = "EAREC explorer";
  dropped(byId("said-status"));
  for (const name of ["said", "item-picture"]) byId(name).replaceChildren();
  nearest.forget();
  weights.forget();
  if (address) URL.revokeObjectURL(address);
  address = null;
}

function fill(item) {
  heading.textContent = nameOf(item);
  document.title = `${nameOf(item)} – EAREC explorer`;
  byId("item-actions").replaceChildren(button("Add to the history", null, () => state.add(item.item_id)));
  byId("item-fields").replaceChildren(...Object.entries(item.fields).flatMap(([name, value]) => field(name, value)));
  const inputs = Object.entries(item.inputs).flatMap(([name, value]) => field(name, value));
  byId("item-inputs").replaceChildren(...(inputs.length ? inputs : field("nothing", "The model can read nothing of it.")));
  byId("related").hidden = item.related.length === 0;
  byId("related-items").replaceChildren(...item.related.map((other) => line(other)));
  body.hidden = false;
  if (item.picture) picture(item);
  nearest.show(item.item_id);
}

function field(name, value) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const term = make("dt", {}, name);
  if (text.startsWith("data:image/")) {
    return [term, make("dd", {}, make("img", { src: text, alt: `What the model reads as ${name}` }))];
  }
  if (text.length <= LONG) return [term, make("dd", {}, text)];
  return [term, make("dd", {}, make("details", {}, make("summary", {}, `${text.slice(0, 80)} …`), text))];
}

async function picture(item) {
  const mine = open;
  let found;
  try {
    found = await api.picture(item.item_id);
  } catch (error) {
    if (mine === open) byId("item-picture").replaceChildren(make("p", { class: "error" }, error.sentence ?? ""));
    return;
  }
  if (mine !== open) return;
  address = URL.createObjectURL(found);
  byId("item-picture").replaceChildren(make("img", { src: address, alt: `Picture of ${nameOf(item)}` }));
}

function ask() {
  const id = open;
  return shown(
    byId("said-status"),
    "The model is reading …",
    () => api.explain(id),
    (found) => {
      const anchor = [make("h4", {}, "anchor"), make("p", {}, found.anchor ?? "The item has none.")];
      byId("said").replaceChildren(...anchor, ...found.texts.flatMap((one) => said(one, found.anchor)));
      return found.texts.length ? "Words that are in the anchor, in its order, are marked." : "It can read nothing of it.";
    },
  );
}

export function start(about) {
  nearest.start(about);
  weights.start(about);
  byId("said-ask").addEventListener("click", ask);
}
