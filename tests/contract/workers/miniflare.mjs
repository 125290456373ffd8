// Runs the Worker under plain miniflare. With an address it is given as the bindings' remoteProxyConnectionString.
import { readFileSync } from "node:fs";
import * as miniflare from "miniflare";

const [address] = process.argv.slice(2);
const binding = (index) => ({
  index_name: index,
  ...(address ? { remoteProxyConnectionString: new URL(address) } : {}),
});
const options = {
  name: "sample",
  compatibilityDate: "2025-09-01",
  modulesRoot: "/",
  modules: ["worker.mjs", "cases.mjs"].map((name) => ({
    type: "ESModule",
    path: `/${name}`,
    contents: readFileSync(new URL(name, import.meta.url), "utf8"),
  })),
  vectorize: { VECTORIZE: binding("docs"), FRESH: binding("fresh") },
};
// Version 5 has other options, and a function from the older ones.
const convert = miniflare.convertV4MiniflareOptions ?? ((one) => one);
const mf = new miniflare.Miniflare(convert(options));
const response = await mf.dispatchFetch("http://sample/");
console.log(await response.text());
await mf.dispose();
