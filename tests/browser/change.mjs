// What a person sees who compares, tries weights and adds an item. Usage: node change.mjs ADDRESS --hostile TEXT
// [--picture FILE]; prints JSON: an object for each width. A text that looks like markup becomes an item's id and fields.
import { parseArgs } from "node:util";
import { opened } from "./page.mjs";

const { values: given, positionals } = parseArgs({
  options: { hostile: { type: "string" }, picture: { type: "string" } },
  allowPositionals: true,
});
const [address] = positionals;
const { browser, page, looks, until, texts, has, heading, search, measure } = await opened(address);

// The lists of a part: the title and the lines of each, with what is said beside an item.
const lists = (part) =>
  page.$$eval(`${part} ol`, (all) =>
    all.map((list) => [list.getAttribute("aria-label"), [...list.querySelectorAll("li")].map((item) => item.innerText.replace(/\s+/g, " ").trim())]),
  );

async function change(width) {
  await page.goto("about:blank");
  await page.goto(address);
  await until("what is served", () => document.getElementById("about").textContent.includes("items"));
  await page.goto(`${address}/#item=i5&history=i0&history=i3`);
  await has("#similar-lists li");
  const seen = { near: await lists("#similar-lists"), compared: (await texts("#similar-status"))[0] };

  // By keyboard alone: the first weight to the end, the other to nothing.
  seen.before = await texts("#weights-sliders output");
  await page.focus("#weight-0");
  await page.keyboard.press("End");
  await page.keyboard.press("ArrowLeft");
  await page.keyboard.press("Tab");
  await page.keyboard.press("Home");
  await page.keyboard.press("ArrowRight");
  seen.labels = await texts("#weights-sliders label");
  seen.after = await texts("#weights-sliders output");
  seen.spoken = await page.$$eval("#weights-sliders input", (all) => all.map((one) => one.getAttribute("aria-valuetext")));
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await has("#weights-found .tried");
  seen.heads = await texts("#weights-found h4.head");
  seen.said = await page.$$eval("#weights-found .text", (all) => all.map((one) => one.textContent));
  seen.ranked = await lists("#weights-found");
  seen.status = (await texts("#weights-status"))[0];
  await page.click("#add summary");
  const measured = await measure();
  if (given.picture && width === 1280) await page.screenshot({ path: given.picture, fullPage: true });
  await page.click("#weights-reset");
  seen.reset = await texts("#weights-sliders output");

  // An item that is there already, then a new one whose every field looks like markup.
  const id = `${given.hostile}${width}`;
  const fields = await page.$$eval("#add-fields label", (all) => Object.fromEntries(all.map((one) => [one.textContent, one.htmlFor])));
  seen.fields = Object.keys(fields);
  const fill = async (name, text) => {
    await page.$eval(`#${fields[name]}`, (control) => (control.value = ""));
    await page.type(`#${fields[name]}`, text);
  };
  await fill("item_id", "i0");
  await fill("title", given.hostile);
  await page.click("#add-form button");
  seen.refused = await until("refusal", () => document.querySelector("#add-status.error")?.textContent);
  await fill("item_id", id);
  await fill("description", `red ${given.hostile}`);
  await page.click("#add-form button");
  await heading(given.hostile);
  seen.added = await until("added", () => document.querySelector("#add-status:not(.error)")?.textContent.startsWith("It is") && document.getElementById("add-status").textContent);
  seen.focus = await until("focus", () => document.activeElement.id === "item-heading" && document.activeElement.id);
  await has("#similar-lists li");
  seen.stored = await texts("#item-fields dd");
  await page.click("#said-ask");
  await has("#said .text");
  await page.click("#weights-form button");
  await has("#weights-found .tried");
  seen.found = await search("onerror");
  await page.click("#item-actions button");
  await until("history", () => document.querySelectorAll("#history-items li").length === 3);
  await until("its title", (title) => document.querySelector("#history-items li:last-child .open").textContent === title, given.hostile);
  await has("#recommend-items li");
  await until("map", () => document.getElementById("map-items").textContent.includes("onerror"));
  await page.goto(`${address}/#item=i5`);
  await has("#similar-lists li");
  seen.about = (await texts("#about"))[0];
  seen.scripts = await page.$$eval("script", (all) => all.map((one) => one.getAttribute("src")));
  seen.pictures = await page.$$eval("img", (all) => all.map((one) => one.getAttribute("src")));
  return { ...seen, ...measured };
}

try {
  console.log(JSON.stringify(await looks(change)));
} finally {
  await browser.close();
}
