// A page of the explorer in Chromium, and what the scripts beside do on it.
import { readFileSync } from "node:fs";
import { launched } from "./chromium.mjs";

export async function opened(address) {
  const browser = await launched();
  const axe = readFileSync("node_modules/axe-core/axe.min.js", "utf8");
  const page = await browser.newPage();
  // Whatever a console, a failed request or a dialog says, and whatever is asked of another site.
  const errors = [];
  page.on("console", (message) => ["error", "warn"].includes(message.type()) && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("requestfailed", (request) => errors.push(`failed: ${request.url()}`));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (!["blob:", "data:"].includes(protocol) && origin !== new URL(address).origin) errors.push(`outside: ${request.url()}`);
  });
  page.on("dialog", (dialog) => {
    errors.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });

  // Not waitForFunction: the page's policy forbids what that makes of strings.
  async function until(what, test, ...more) {
    for (let tries = 0; tries < 200; tries++) {
      const found = await page.evaluate(test, ...more);
      if (found) return found;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    throw new Error(`${what} did not come; ${errors.join("; ")}; ${await page.$eval("body", (body) => body.innerText)}`);
  }
  const texts = (selector) => page.$$eval(selector, (all) => all.map((one) => one.textContent));
  const has = (selector) => until(selector, (wanted) => document.querySelector(wanted) !== null, selector);
  const heading = (text) => until(`heading ${text}`, (wanted) => document.getElementById("item-heading").textContent === wanted, text);

  async function search(words) {
    await page.$eval("#search-results", (list) => list.replaceChildren());
    await page.$eval("#search-words", (input) => (input.value = ""));
    await page.type("#search-words", words);
    await page.keyboard.press("Enter");
    await has("#search-results li");
    return texts("#search-results .open");
  }

  // What sticks out of the page, and what axe finds.
  async function measure() {
    await page.evaluate(axe);
    return page.evaluate(async () => ({
      scroll: document.documentElement.scrollWidth,
      wider: [...document.querySelectorAll("body *")]
        .filter((part) => part.getBoundingClientRect().right > innerWidth + 1 || part.getBoundingClientRect().left < -1)
        .map((part) => part.outerHTML.slice(0, 120)),
      violations: (await axe.run()).violations.map(({ id, nodes }) => [id, nodes.map((node) => node.html.slice(0, 200))]),
    }));
  }

  // What a use of the page comes to, wide and light, then narrow and dark.
  async function looks(use, after = () => {}) {
    const seen = [];
    for (const [width, scheme] of [[1280, "light"], [375, "dark"]]) {
      errors.length = 0;
      await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
      await page.setViewport({ width, height: 900 });
      seen.push({ width, ...(await use(width)), errors: [...errors] });
      await after(width);
    }
    return seen;
  }
  return { browser, page, errors, looks, until, texts, has, heading, search, measure };
}
