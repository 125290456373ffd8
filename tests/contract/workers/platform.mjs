// Runs the cases in Node, on the bindings that wrangler's getPlatformProxy makes of the configuration.
import { getPlatformProxy } from "wrangler";
import { runCases } from "./cases.mjs";

const { env, dispose } = await getPlatformProxy({ configPath: process.argv[2] ?? "wrangler.jsonc" });
console.log(JSON.stringify(await runCases({ docs: env.VECTORIZE, fresh: env.FRESH })));
await dispose();
