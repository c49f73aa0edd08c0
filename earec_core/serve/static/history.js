// A history of items, or a user, what comes next, and why.
import * as api from "./api.js";
import { button, byId, dropped, make, shown } from "./dom.js";
import { line, nameOf, number, signed } from "./lines.js";
import * as state from "./state.js";

const BEST = 10;
const PAST = 10;
const NONE = "Nothing is asked for yet.";
const names = new Map();
let last = null;
let recommender = false;

export function show({ history, user }) {
  const now = JSON.stringify([history, user]);
  if (now === last) return;
  last = now;
  byId("history-clear").hidden = !history.length && user === null;
  byId("history-hint").hidden = history.length > 0 || user !== null;
  byId("history-items").replaceChildren(...history.map(past));
  byId("user-id").value = user ?? "";
  byId("recommend-items").replaceChildren();
  if (!recommender) return;
  if (!history.length && user === null) return dropped(byId("recommend-status"), NONE);
  const asked = { history, user };
  shown(
    byId("recommend-status"),
    "Recommending …",
    () => api.recommend(asked, BEST),
    (found) => {
      byId("recommend-items").replaceChildren(...found.items.map((item) => recommended(item, asked)));
      const whom = user === null ? "after this history" : `for user ${user}`;
      return found.items.length ? `What comes next ${whom}.` : `Nothing can be recommended ${whom}.`;
    },
  );
}

function past(id) {
  const open = button(names.get(id) ?? id, null, () => state.open(id));
  open.classList.add("open");
  const remove = button("×", `Remove ${names.get(id) ?? id} from the history`, () => {
    state.remove(id);
    byId("history-heading").focus();
  });
  if (!names.has(id)) {
    api.item(id).then(
      (item) => {
        names.set(id, nameOf(item));
        open.textContent = nameOf(item);
        remove.setAttribute("aria-label", `Remove ${nameOf(item)} from the history`);
      },
      () => {},
    );
  }
  return make("li", {}, make("div", { class: "line" }, open, remove));
}

function recommended(item, asked) {
  const box = make("div", { class: "why", hidden: "" });
  const why = button("Why?", `Why ${nameOf(item)}?`, () => {
    box.hidden = !box.hidden;
    why.setAttribute("aria-expanded", String(!box.hidden));
    if (!box.hidden && !box.children.length) reasons(item, asked, box);
  });
  why.setAttribute("aria-expanded", "false");
  const row = line(item, why);
  row.append(box);
  return row;
}

function reasons(item, asked, box) {
  const status = make("p", { class: "status", role: "status" });
  box.replaceChildren(status);
  return shown(
    status,
    "Leaving out one thing at a time …",
    () => api.reasons(asked, item.item_id),
    (found) => {
      const byChange = [...found.history].sort((one, other) => (one.change ?? -Infinity) - (other.change ?? -Infinity));
      box.append(
        table("Without a modality of the item", "modality", found.modalities.map((one) => [one.modality, one])),
        table("Without an item of the history", "item", byChange.slice(0, PAST).map((one) => [nameOf(one), one])),
      );
      if (byChange.length > PAST) box.append(make("p", {}, `${byChange.length - PAST} more change it less, or raise it.`));
      return `Its score is ${number(found.score)}. What lowers it when left out speaks for it.`;
    },
  );
}

function table(caption, column, rows) {
  const head = [column, "score", "change"].map((name) => make("th", { scope: "col" }, name));
  const body = rows.map(([name, { score, change }]) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, name),
      make("td", {}, score === null ? "nothing is left" : number(score)),
      make("td", {}, change === null ? "" : signed(change)),
    ),
  );
  return make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

export function start(about) {
  recommender = about.recommender !== null;
  dropped(byId("recommend-status"), recommender ? NONE : "No recommender is served: start with --recommender REF.");
  byId("user-form").hidden = !recommender;
  byId("history-clear").addEventListener("click", () => {
    state.clear();
    byId("history-heading").focus();
  });
  byId("user-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const user = byId("user-id").value;
    if (user) state.choose(user);
  });
}
