// Elements of the page. Text is only ever put in as text: titles and what a model says may look like markup.

export const byId = (id) => document.getElementById(id);

// An element with attributes and children; a child that is no element becomes text.
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export function button(label, spoken, act) {
  const made = make("button", { type: "button", ...(spoken ? { "aria-label": spoken } : {}) }, label);
  made.addEventListener("click", act);
  return made;
}

// Replace what a part shows by what `work` comes to; the status says what is going on, and an error's sentence.
// Of several that are under way for one part, the last one asked for is shown.
const turns = new WeakMap();
export async function shown(status, waiting, work, show) {
  const turn = {};
  turns.set(status, turn);
  status.classList.remove("error");
  status.textContent = waiting;
  try {
    const found = await work();
    if (turns.get(status) === turn) status.textContent = show(found) ?? "";
  } catch (error) {
    if (turns.get(status) !== turn) return;
    status.classList.add("error");
    status.textContent = error.sentence ?? "The page failed at this; the browser's console says where.";
    if (!error.sentence) console.error(error);
  }
}

// What was asked for is no longer wanted.
export function dropped(status, text = "") {
  turns.delete(status);
  status.classList.remove("error");
  status.textContent = text;
}
