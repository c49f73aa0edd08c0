// What a browser makes of pages. Usage: node look.mjs PAGE.html ... ; prints a JSON list, an object a page and width.
import { launched } from "./chromium.mjs";

const browser = await launched();
const page = await browser.newPage();
let errors = [];
page.on("console", (message) => ["error", "warn"].includes(message.type()) && errors.push(message.text()));
page.on("pageerror", (error) => errors.push(String(error)));
page.on("requestfailed", (request) => errors.push(request.url()));

const measured = () => ({
  scroll: document.documentElement.scrollWidth,
  wider: [...document.querySelectorAll("body *")]
    .filter((part) => part.getBoundingClientRect().right > innerWidth + 1 || part.getBoundingClientRect().left < -1)
    .map((part) => part.outerHTML.slice(0, 120)),
  named: [...document.querySelectorAll("td.n")].map((cell) => getComputedStyle(cell, "::before").content),
});
const looks = [];
for (const file of process.argv.slice(2)) {
  for (const width of [1280, 375]) {
    errors = [];
    await page.setViewport({ width, height: 900 });
    await page.goto(`file://${file}`);
    looks.push({ file, width, ...(await page.evaluate(measured)), errors });
  }
}
await browser.close();
console.log(JSON.stringify(looks));
