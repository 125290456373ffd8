// globalSetup for vitest: a server with a data folder of its own, gone at the end, behind every Vectorize binding.
//
//   test: { globalSetup: ["headrace/vitest"] }
//
// With HEADRACE_URL in the environment that server is used instead. Writes return when they can be found.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import settings from "./options.cjs";
import { ensure } from "./server.mjs";

export default async function setup(project) {
  const own = !process.env.HEADRACE_URL;
  const folder = own ? fs.mkdtempSync(path.join(os.tmpdir(), "headrace-vitest-")) : undefined;
  // Port 0 is free for sure, and nothing ever answers there.
  const given = own ? { url: "http://127.0.0.1:0", wait: true } : { wait: true };
  const { options, stop } = await ensure(given, { mayStart: own, data: folder, level: "error" });
  Object.assign(process.env, settings.environmentOf(options));
  // Miniflare runs in this process, and may have been loaded by the configuration already.
  await import("./register.cjs");
  project?.provide?.("headrace", options);
  return async () => {
    await stop();
    if (folder) fs.rmSync(folder, { recursive: true, force: true });
  };
}
