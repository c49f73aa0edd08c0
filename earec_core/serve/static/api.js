// The service's answers; an error of its is thrown with the service's own sentence.
import { askForToken, token } from "./token.js";

class ServiceError extends Error {
  constructor(sentence) {
    super(sentence);
    this.sentence = sentence;
  }
}

async function answer(path, body) {
  for (;;) {
    const used = token();
    const headers = used ? { authorization: `Bearer ${used}` } : {};
    if (body) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body) });
    } catch {
      throw new ServiceError("The service cannot be reached. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      if (!(await askForToken(used))) throw new ServiceError("The service answers nobody without its token.");
      continue;
    }
    throw new ServiceError(await sentence(response));
  }
}

async function sentence(response) {
  try {
    const { problem, next_step: step } = await response.json();
    return `${problem} ${step ?? ""}`.trim();
  } catch {
    return `The service answered with status ${response.status}.`;
  }
}

const get = async (path) => (await answer(path)).json();
const post = async (path, body) => (await answer(path, body)).json();
const first = async (path, body) => (await post(path, body)).results[0];

export const about = () => get("/v1/about");
export const items = (words, offset, limit) => get(`/v1/items?${new URLSearchParams({ q: words, offset, limit })}`);
export const item = (id) => get(`/v1/items/${encodeURIComponent(id)}`);
export const picture = async (id) => (await answer(`/v1/pictures/${encodeURIComponent(id)}`)).blob();
export const similar = (id, k, vectors = null) => first("/v1/similar", { ids: [id], k, vectors });
export const explain = (id) => first("/v1/explain", { ids: [id] });
export const weights = (asked) => post("/v1/weights", asked);
export const map = () => get("/v1/map");

// The item as it is now, and whether it is new.
export async function add(fields) {
  const response = await answer("/v1/items", fields);
  return { added: await response.json(), isNew: response.status === 201 };
}

// What comes next for `{ history }` or `{ user }`.
export const recommend = ({ history, user }, k) =>
  first("/v1/recommend", user === null ? { histories: [history], k } : { users: [user], k });
export const reasons = ({ history, user }, id) =>
  first("/v1/reasons", user === null ? { ids: [id], history } : { ids: [id], user });

// Resolves once the service has loaded its model; until then `waiting` is told a sentence.
export async function ready(waiting) {
  for (;;) {
    const response = await fetch("/readyz").catch(() => null);
    if (response?.ok) return;
    const state = (await response?.json().catch(() => null)) ?? {};
    waiting(state.problem ? `${state.problem} ${state.next_step ?? ""}` : "The model is being loaded …");
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}
