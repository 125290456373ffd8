import { env } from "cloudflare:workers";
import { VectorizeIndex, resetIndex } from "headrace/client";
import { beforeEach, expect, inject, test } from "vitest";

const values = new Float32Array(32).fill(0.5);
const headrace = inject("headrace");

beforeEach(() => resetIndex("notes", headrace));

test("a write can be found when it returns", async () => {
  await env.FRESH.upsert([{ id: "a", values, metadata: { kind: "x" } }]);

  const found = await env.FRESH.query(values, { topK: 1, returnMetadata: true });

  expect(found.matches).toEqual([{ id: "a", score: 1, metadata: { kind: "x" } }]);
});

for (const id of ["a", "b"]) {
  test(`an index is empty again: ${id}`, async () => {
    const notes = new VectorizeIndex("notes", headrace);
    await notes.insert([{ id, values }]);

    expect((await notes.describe()).vectorCount).toBe(1);
  });
}
