// A new item: a field for each of the catalog's columns that a form can fill.
import * as api from "./api.js";
import { byId, make, shown } from "./dom.js";
import * as state from "./state.js";

const form = byId("add-form");
const NUMBER = /^U?Int\d+$|^Float\d+$/;
const given = (text) => (text === "" ? undefined : text);

// By the kind of a column: the control, and the value that it holds; undefined where nothing was given.
const KINDS = [
  [(kind) => kind === "String", (more) => make("textarea", { rows: "1", ...more }), async ({ value }) => given(value)],
  [
    (kind) => NUMBER.test(kind),
    (more) => make("input", { inputmode: "decimal", ...more }),
    async ({ value }) => (value.trim() === "" || Number.isNaN(Number(value)) ? given(value.trim()) : Number(value)),
  ],
  [
    (kind) => kind === "Boolean",
    (more) => make("select", more, ...["", "yes", "no"].map((name) => make("option", {}, name))),
    async ({ value }) => (value === "" ? undefined : value === "yes"),
  ],
  [
    (kind) => kind === "List(String)",
    (more) => make("textarea", { rows: "2", ...more }),
    async ({ value }) => given(value.split("\n").filter((one) => one.trim()).join("\n"))?.split("\n"),
  ],
  [(kind) => kind === "Binary", (more) => make("input", { type: "file", ...more }), async ({ files }) => files[0] && bytes(files[0])],
];
const controls = new Map();

async function bytes(file) {
  const read = new FileReader();
  await new Promise((resolve) => {
    read.addEventListener("loadend", resolve);
    read.readAsDataURL(file);
  });
  return { base64: read.result.split(",")[1] ?? "" };
}

function field([name, kind], place) {
  const found = KINDS.find(([fits]) => fits(kind));
  if (!found) return [];
  const id = `add-${place}`;
  const control =
    name === "item_id" ? make("input", { id, required: "", maxlength: "1024", autocomplete: "off" }) : found[1]({ id });
  controls.set(name, [control, found[2]]);
  return [make("label", { for: id }, kind === "List(String)" ? `${name}, one a line` : name), control];
}

async function item() {
  const fields = {};
  for (const [name, [control, read]] of controls) {
    const value = await read(control);
    if (value !== undefined) fields[name] = value;
  }
  return fields;
}

// `changed` is called when there is another item.
export function start(about, changed) {
  const columns = Object.entries(about.columns);
  byId("add-fields").replaceChildren(...columns.flatMap(field));
  const left = columns.map(([name]) => name).filter((name) => !controls.has(name));
  byId("add-left").textContent = left.length ? `Not to be given here: ${left.join(", ")}.` : "";
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    shown(
      byId("add-status"),
      "The model is reading …",
      async () => api.add(await item()),
      ({ added, isNew }) => {
        form.reset();
        state.open(added.item_id);
        if (isNew) changed();
        return isNew ? "It is added; a search finds it." : "It is there already, the same.";
      },
    );
  });
}
