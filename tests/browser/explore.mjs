// What a person sees who uses the explorer. Usage: node explore.mjs ADDRESS [--pairs JSON] [--picture FILE], or
// node explore.mjs ADDRESS --token TOKEN; prints JSON: an object for each width, or what asking for the token came to.
// Pairs are of texts and anchors, whose marked words are wanted.
import { parseArgs } from "node:util";
import { opened } from "./page.mjs";

const { values: given, positionals } = parseArgs({
  options: { token: { type: "string" }, picture: { type: "string" }, pairs: { type: "string", default: "[]" } },
  allowPositionals: true,
});
const [address] = positionals;
const { browser, page, errors, looks, until, texts, has, heading, search, measure } = await opened(address);

async function explore() {
  await page.goto(address);
  await until("what is served", () => document.getElementById("about").textContent.includes("items"));
  const seen = { about: (await texts("#about"))[0], found: await search("pen") };

  // By keyboard alone: the first one that was found, and the question to the model.
  await page.keyboard.press("Tab");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await heading(seen.found[0]);
  await has("#similar-lists li");
  await has("#item-picture img");
  seen.picture = await until("picture", () => document.querySelector("#item-picture img").naturalWidth);
  seen.focus = await page.evaluate(() => document.activeElement.id);
  await page.focus("#said-ask");
  await page.keyboard.press("Enter");
  await has("#said .text");
  seen.said = await texts("#said h4");

  for (const place of [1, 2]) await page.click(`#search-results li:nth-child(${place}) button:last-child`);
  await until("history", () => document.querySelectorAll("#history-items li").length === 2);
  await has("#recommend-items li");
  seen.recommended = await texts("#recommend-items .open");
  await page.click("#recommend-items li button[aria-expanded]");
  await has("#recommend-items .why table + table");
  seen.why = await texts("#recommend-items .why tbody tr > *");

  await page.click("#map-list summary");
  await page.focus("#map-items .open");
  seen.pointed = (await texts("#map-title"))[0];
  const [target, x, y] = await page.evaluate(async () => {
    const { items } = await (await fetch("/v1/map")).json();
    const canvas = document.getElementById("map");
    canvas.scrollIntoView({ block: "center" });
    const { left, top } = canvas.getBoundingClientRect();
    const [item] = [...items].sort((one, other) => one.x - other.x);
    const across = (value, size) => 10 + value * (size - 20);
    return [item.title, left + across(item.x, canvas.clientWidth), top + across(1 - item.y, canvas.clientHeight)];
  });
  await page.mouse.move(x, y);
  await until("the title", (title) => document.getElementById("map-title").textContent.startsWith(title), target);
  await page.mouse.click(x, y);
  await heading(target);

  // A title that looks like markup, opened again from its address.
  seen.hostile = (await search("onerror"))[0];
  await page.click("#search-results .open");
  await heading(seen.hostile);
  const measured = await measure();
  seen.marked = await page.evaluate(async (pairs) => {
    const { marked } = await import("/static/words.js");
    return pairs.map((pair) => marked(...pair).filter((part) => part.tagName).map((part) => part.textContent));
  }, JSON.parse(given.pairs));
  await page.reload();
  await heading(seen.hostile);
  await until("history", () => document.querySelectorAll("#history-items li").length === 2);
  await has("#recommend-items li");
  return { ...seen, ...measured };
}

async function askedForToken() {
  await page.goto(address);
  await has("dialog[open]");
  const { violations } = await measure();
  await page.type("#token-text", "wrong");
  await page.keyboard.press("Enter");
  await until("refusal", () => document.getElementById("token-wrong").textContent);
  await page.type("#token-text", given.token);
  await page.keyboard.press("Enter");
  await until("what is served", () => document.getElementById("about").textContent.includes("items"));
  return { violations, errors };
}

try {
  if (given.token) console.log(JSON.stringify(await askedForToken()));
  else {
    const picture = (width) => given.picture && width === 1280 && page.screenshot({ path: given.picture, fullPage: true });
    console.log(JSON.stringify(await looks(explore, picture)));
  }
} finally {
  await browser.close();
}
