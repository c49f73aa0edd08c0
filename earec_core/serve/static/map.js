// The catalog on a canvas, and the same as a list for who has no pointer.
import * as api from "./api.js";
import { byId, make, shown } from "./dom.js";
import { line, nameOf } from "./lines.js";
import * as state from "./state.js";

const PAGE = 50;
const NEAR = 12;
const EDGE = 10;
const HINT = "Point at an item to see its title.";
const canvas = byId("map");
let map = { items: [], groups: [] };
let chosen = null;
let pointed = null;

const place = ({ x, y }) => [EDGE + x * (canvas.clientWidth - 2 * EDGE), EDGE + (1 - y) * (canvas.clientHeight - 2 * EDGE)];

function draw() {
  const scale = devicePixelRatio;
  [canvas.width, canvas.height] = [canvas.clientWidth * scale, canvas.clientHeight * scale];
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  const style = getComputedStyle(canvas);
  const colours = [...map.groups.keys()].map((group) => style.getPropertyValue(`--group-${group}`));
  const other = style.getPropertyValue("--group-other");
  context.globalAlpha = 0.75;
  for (const item of map.items) {
    context.fillStyle = colours[item.group] ?? other;
    dot(context, item, 3.5);
    context.fill();
  }
  context.globalAlpha = 1;
  context.strokeStyle = style.color;
  context.lineWidth = 2;
  for (const item of map.items.filter(({ item_id: id }) => id === chosen || id === pointed?.item_id)) {
    dot(context, item, 7);
    context.stroke();
  }
}

function dot(context, item, radius) {
  context.beginPath();
  context.arc(...place(item), radius, 0, 2 * Math.PI);
}

function nearest(event) {
  const { left, top } = canvas.getBoundingClientRect();
  const away = (item) => {
    const [x, y] = place(item);
    return Math.hypot(x - event.clientX + left, y - event.clientY + top);
  };
  let best = null;
  let least = NEAR;
  for (const item of map.items) {
    const distance = away(item);
    if (distance < least) [best, least] = [item, distance];
  }
  return best;
}

function point(item) {
  if (item === pointed) return;
  pointed = item;
  const group = map.groups[item?.group];
  byId("map-title").textContent = item ? nameOf(item) + (group ? ` (${group})` : "") : HINT;
  canvas.classList.toggle("pointed", item !== null);
  draw();
}

function list(from) {
  const wanted = byId("map-group").value;
  const found = map.items.filter(({ group }) => wanted === "" || String(group ?? "other") === wanted);
  const lines = found.slice(from, from + PAGE).map((item) => {
    const made = line(item);
    made.querySelector("button").addEventListener("focus", () => point(item));
    return made;
  });
  if (from) byId("map-items").append(...lines);
  else byId("map-items").replaceChildren(...lines);
  byId("map-more").hidden = from + PAGE >= found.length;
  if (from) lines[0]?.querySelector("button").focus();
}

function fill(found) {
  map = found;
  const counts = new Map();
  for (const { group } of map.items) counts.set(group ?? "other", (counts.get(group ?? "other") ?? 0) + 1);
  const kinds = [...map.groups.map((name, group) => [String(group), name]), ["other", map.groups.length ? "others" : "items"]]
    .map(([value, name]) => [value, name, counts.get(value === "other" ? value : Number(value)) ?? 0])
    .filter(([, , count]) => count);
  byId("map-legend").replaceChildren(
    ...kinds.map(([value, name, count]) => make("li", {}, make("span", { class: `swatch group-${value}` }), `${name} (${count})`)),
  );
  byId("map-group").replaceChildren(
    make("option", { value: "" }, `all (${map.items.length})`),
    ...kinds.map(([value, name, count]) => make("option", { value }, `${name} (${count})`)),
  );
  byId("map-body").hidden = map.items.length === 0;
  list(0);
  draw();
  const sample = map.items.length < map.total ? ` ${map.items.length} of ${map.total} items, a random sample.` : "";
  return map.items.length ? `Near are items of like vectors, as far as two directions say it.${sample}` : "There are no items.";
}

export function mark(id) {
  chosen = id;
  draw();
}

export const load = () => shown(byId("map-status"), "Drawing the map …", api.map, fill);

export function start() {
  canvas.addEventListener("pointermove", (event) => point(nearest(event)));
  canvas.addEventListener("pointerleave", () => point(null));
  canvas.addEventListener("click", (event) => {
    const item = nearest(event);
    if (item) state.open(item.item_id);
  });
  byId("map-group").addEventListener("change", () => list(0));
  byId("map-more").addEventListener("click", () => list(byId("map-items").children.length));
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return load();
}
