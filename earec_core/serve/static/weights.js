// The composite at other weights, on the item that is open: beside each other what it says and ranks at either.
import * as api from "./api.js";
import { byId, dropped, make, shown } from "./dom.js";
import { line, tag } from "./lines.js";
import { said } from "./said.js";
import * as state from "./state.js";

const BEST = 10;
const status = byId("weights-status");
const found = byId("weights-found");
const sliders = new Map();
let served = {};
let values = {};
let recommender = false;

const total = (some) => Object.values(some).reduce((sum, value) => sum + value, 0);
const percent = (value, sum) => `${Math.round(sum ? (100 * value) / sum : 0)}%`;
const shares = (some) => Object.entries(some).map(([name, value]) => `${name} ${percent(value, total(some))}`).join(", ");

export function forget() {
  dropped(status);
  found.replaceChildren();
}

function label() {
  const sum = total(values);
  for (const [name, { input, output }] of sliders) {
    output.textContent = percent(values[name], sum);
    input.setAttribute("aria-valuetext", `${output.textContent} of the weights`);
  }
}

function reset() {
  const sum = total(served);
  for (const [name, { input }] of sliders) {
    values[name] = (100 * served[name]) / sum;
    input.value = values[name];
  }
  label();
}

function slider(name, place) {
  const id = `weight-${place}`;
  const input = make("input", { type: "range", id, min: "0", max: "100", step: "1" });
  const output = make("output", { for: id });
  input.addEventListener("input", () => {
    values[name] = input.valueAsNumber;
    label();
  });
  sliders.set(name, { input, output });
  return make("div", { class: "slider" }, make("label", { for: id }, name), input, output);
}

function ask() {
  const { item, history, user } = state.read();
  const asked = { weights: values, item_id: item };
  if (recommender && user !== null) asked.user = user;
  else if (recommender) asked.history = history;
  return shown(status, "Composing, encoding and asking the model …", () => api.weights(asked), fill);
}

function fill(answer) {
  const after = asked(answer) ? [["Recommended", answer.recommended]] : [];
  const lists = [["Nearest items", answer.similar], ...after];
  const before = lists.map(([name, items]) => [name, [...items].sort((one, other) => one.served_rank - other.served_rank)]);
  const asServed = (item) => ({ ...item, score: item.served_score });
  found.replaceChildren(
    make("h4", {}, "anchor"),
    make("p", {}, answer.anchor ?? "The item has none."),
    make(
      "div",
      { class: "lists" },
      column("served", answer.served, answer.anchor, before, (item) => [asServed(item), ...leaves(item)]),
      column("tried", answer.tried, answer.anchor, lists, (item) => [item, tag(moved(item), item.rank !== item.served_rank)]),
    ),
  );
  const other = lists.flatMap(([, items]) => items.slice(0, BEST)).filter((item) => item.rank !== item.served_rank).length;
  return `At ${shares(answer.tried.weights)}: ${other || "no"} places of these lists are another item's.`;
}

const asked = ({ recommended }) => recommended.length > 0;
const leaves = ({ rank }) => (rank > BEST ? [tag(`then ${rank}.`, true)] : []);

function moved({ rank, served_rank: before }) {
  if (rank === before) return "same";
  return rank < before ? `up from ${before}.` : `down from ${before}.`;
}

function column(kind, { weights, texts }, anchor, lists, shownAs) {
  return make(
    "div",
    { class: kind },
    make("h4", { class: "head" }, `${kind === "served" ? "Served" : "These weights"}: ${shares(weights)}`),
    ...(texts.length ? texts.flatMap((one) => said(one, anchor, "h5")) : [make("p", {}, "It can read nothing of it.")]),
    ...lists.flatMap(([name, items]) => {
      const list = make("ol", { class: "lines", "aria-label": `${name}, ${kind === "served" ? "served" : "these weights"}` });
      list.append(...items.slice(0, BEST).map((item) => line(...shownAs(item))));
      return [make("h5", {}, name), list];
    }),
  );
}

export function start(about) {
  recommender = about.recommender !== null;
  byId("weights").hidden = about.weights === null;
  if (about.weights === null) return;
  served = about.weights;
  byId("weights-sliders").replaceChildren(...Object.keys(served).map(slider));
  reset();
  byId("weights-reset").addEventListener("click", reset);
  byId("weights-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
}
