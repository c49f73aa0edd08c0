// An item's nearest by the model's vectors and by each that is served beside them, next to each other.
import * as api from "./api.js";
import { byId, dropped, make, shown } from "./dom.js";
import { line, tag } from "./lines.js";

const NEAREST = 10;
const lists = byId("similar-lists");
const status = byId("similar-status");
let kinds = [];

export function forget() {
  dropped(status);
  lists.replaceChildren();
}

export function show(id) {
  const asked = kinds.map(async ({ name }) => {
    try {
      return await api.similar(id, NEAREST, name);
    } catch (error) {
      if (!error.sentence || name === null) throw error;
      return { items: [], sentence: error.sentence };
    }
  });
  return shown(status, "Comparing …", () => Promise.all(asked), fill);
}

function fill(found) {
  const times = new Map();
  for (const { items } of found) for (const { item_id: id } of items) times.set(id, (times.get(id) ?? 0) + 1);
  const full = found.filter(({ items }) => items.length).length;
  const alone = (item) => (full > 1 && times.get(item.item_id) === 1 ? [tag("only here")] : []);
  lists.replaceChildren(
    ...found.map(({ items, sentence }, place) => {
      const { title } = kinds[place];
      const list = make("ol", { class: "lines", "aria-label": `Nearest items ${title}` });
      list.append(...items.map((item) => line(item, ...alone(item))));
      const heading = kinds.length > 1 ? [make("h4", {}, title)] : [];
      return make("div", {}, ...heading, sentence ? make("p", {}, sentence) : list);
    }),
  );
  if (full < 2) return "";
  const common = [...times.values()].filter((count) => count === full).length;
  return `${common} of ${times.size} items are in ${full === 2 ? "both" : `all ${full}`} lists; those of one are marked.`;
}

export function start(about) {
  const others = about.beside.map(({ name, modalities }) => ({
    name,
    title: `by ${name}${modalities.length ? ` (${modalities.join(", ")})` : ""}`,
  }));
  kinds = [{ name: null, title: `by the model (${about.modalities.join(", ")})` }, ...others];
}
