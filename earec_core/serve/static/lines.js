// Items in a list: a button that opens each, one that adds it to the history, and its score.
import { button, make } from "./dom.js";
import * as state from "./state.js";

export const nameOf = (item) => item.title ?? item.item_id;
export const number = (value) => value.toFixed(3);
export const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

// A short word about an item of a list; a strong one is to be noticed.
export const tag = (text, strong = false) => make("span", { class: strong ? "tag strong" : "tag" }, text);

export function line(item, ...more) {
  const name = nameOf(item);
  const open = button(name, null, () => state.open(item.item_id));
  open.classList.add("open");
  const score = item.score === undefined ? [] : [make("span", { class: "score" }, number(item.score))];
  const add = button("+", `Add ${name} to the history`, () => state.add(item.item_id));
  return make("li", {}, make("div", { class: "line" }, open, ...score, ...more, add));
}
