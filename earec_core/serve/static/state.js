// What is looked at: `{ item, history, user }`, kept in the address behind #, so that a link opens it again.

let asked = false;

export function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const user = given.get("user");
  return { item: given.get("item"), history: user === null ? given.getAll("history") : [], user };
}

function write({ item, history, user }) {
  const given = new URLSearchParams();
  if (item !== null) given.set("item", item);
  if (user !== null) given.set("user", user);
  else for (const id of history) given.append("history", id);
  location.hash = given.toString();
}

// Open an item; whoever asked is taken to it.
export function open(item) {
  asked = true;
  if (read().item === item) window.dispatchEvent(new HashChangeEvent("hashchange"));
  else write({ ...read(), item });
}

export function add(id) {
  const now = read();
  write({ ...now, history: [...now.history.filter((other) => other !== id), id], user: null });
}

export function remove(id) {
  const now = read();
  write({ ...now, history: now.history.filter((other) => other !== id) });
}

export const clear = () => write({ ...read(), history: [], user: null });
export const choose = (user) => write({ ...read(), history: [], user });

// Whether a person asked for the item that is shown now, rather than the address.
export function taken() {
  const was = asked;
  asked = false;
  return was;
}
