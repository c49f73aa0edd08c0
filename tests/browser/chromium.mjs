// The Chromium that npm has, started.
import chromium from "@sparticuz/chromium";
import puppeteer from "puppeteer-core";

export async function launched() {
  // Unpacked beside this file: another process of the tests may be unpacking one into the common folder.
  const common = process.env.TMPDIR;
  process.env.TMPDIR = import.meta.dirname;
  const executablePath = await chromium.executablePath();
  if (common === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = common;
  for (let tries = 1; ; tries++) {
    try {
      return await puppeteer.launch({ args: chromium.args, executablePath, headless: "shell" });
    } catch (error) {
      // On a busy machine it ends now and then while it starts.
      if (tries === 3) throw error;
    }
  }
}
