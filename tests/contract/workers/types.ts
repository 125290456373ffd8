// What an editor shows to who writes against the package: checked by the compiler, never run.
import type { Vectorize } from "@cloudflare/workers-types";
import { VectorizeIndex, resetIndex, type Matches, type QueryOptions } from "headrace/client";
import { plugins } from "headrace";
import setup from "headrace/vitest";
import HeadraceWorker, { type HeadraceEnv } from "headrace/worker";
import { inject } from "vitest";

// It can be passed to whatever takes the real binding, for what both have.
type Shared = Pick<Vectorize, "deleteByIds" | "getByIds" | "insert" | "upsert">;
const index = new VectorizeIndex("docs", { url: "http://127.0.0.1:8787", wait: true });
const binding: Shared = index as Shared;

export async function search(values: Float32Array): Promise<string[]> {
  const options: QueryOptions = { topK: 3, returnMetadata: "all", filter: { kind: "x" }, recall: 1 };
  const found: Matches = await index.query(values, options);
  await binding.deleteByIds(found.matches.map((match) => match.id));
  await resetIndex("docs", inject("headrace"));
  return found.matches.map((match) => `${match.id} ${match.score.toFixed(2)}`);
}

// @ts-expect-error: there is no such option
export const wrong = index.query([1], { top_k: 3 });

export class Named extends HeadraceWorker {}
export const env: HeadraceEnv = { HEADRACE_URL: "http://127.0.0.1:8787" };
export { plugins, setup };
