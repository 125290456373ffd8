// The official npm SDK, and every kind of body that it takes.
import { createReadStream, writeFileSync } from "node:fs";
import Cloudflare, { APIError, toFile } from "cloudflare";

const account_id = process.env.HEADRACE_ACCOUNT;
const client = new Cloudflare({ apiToken: "local", baseURL: `${process.env.HEADRACE_URL}/client/v4` });
const { indexes } = client.vectorize;
const axis = (number) => Array.from({ length: 32 }, (_, place) => (place === number ? 1 : 0));
const line = (id, number, more = {}) => JSON.stringify({ id, values: axis(number), ...more });

async function settled({ mutationId }) {
  for (;;) {
    const info = await indexes.info("small", { account_id });
    if (info.processedUpToMutation === mutationId) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

async function refusal(promise) {
  const error = await promise.then(
    () => undefined,
    (one) => one,
  );
  if (!(error instanceof APIError)) throw new Error(`expected a refusal, and got ${error}`);
  return [error.status, error.errors[0].code];
}

async function collect(pages) {
  const all = [];
  for await (const one of pages) all.push(one);
  return all;
}

function equal(found, expected) {
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  if (left !== right) throw new Error(`expected ${right}, and got ${left}`);
}

const upsert = async (body) => settled(await indexes.upsert("small", { account_id, body }));
const STEPS = {
  async "create, list, get"() {
    const made = await indexes.create({
      account_id,
      name: "small",
      config: { dimensions: 32, metric: "cosine" },
    });
    equal(made.config, { dimensions: 32, metric: "cosine" });
    equal((await collect(indexes.list({ account_id }))).map((one) => one.name).sort(), ["docs", "small"]);
    equal((await indexes.get("small", { account_id })).name, "small");
  },
  "insert a string": async () => settled(await indexes.insert("small", { account_id, body: line("a", 0) })),
  "upsert a string": () => upsert(`${line("b", 1, { metadata: { kind: "x" } })}\n${line("c", 2)}\n`),
  "upsert a buffer": () => upsert(Buffer.from(line("d", 3))),
  "upsert a file of bytes": async () => upsert(await toFile(Buffer.from(line("e", 4)), "vectors.ndjson")),
  async "upsert a stream"() {
    writeFileSync("vectors.ndjson", line("f", 5, { namespace: "n" }));
    await upsert(createReadStream("vectors.ndjson"));
  },
  async "metadata indexes"() {
    const { metadataIndex } = indexes;
    await settled(
      await metadataIndex.create("small", { account_id, propertyName: "kind", indexType: "string" }),
    );
    const { metadataIndexes } = await metadataIndex.list("small", { account_id });
    equal(metadataIndexes, [{ propertyName: "kind", indexType: "String" }]);
  },
  async query() {
    const { count, matches } = await indexes.query("small", {
      account_id,
      vector: axis(1),
      topK: 3,
      returnMetadata: "all",
      returnValues: true,
      filter: { kind: "x" },
    });
    equal([count, matches], [1, [{ id: "b", score: 1, values: axis(1), metadata: { kind: "x" } }]]);
  },
  async "get and delete by ids"() {
    equal(
      (await indexes.getByIDs("small", { account_id, ids: ["f", "a", "z"] })).map((one) => one.id),
      ["f", "a"],
    );
    await settled(await indexes.deleteByIDs("small", { account_id, ids: ["a"] }));
    equal((await indexes.info("small", { account_id })).vectorCount, 5);
  },
  async "list vectors, page by page"() {
    const first = await indexes.listVectors("small", { account_id, count: 3 });
    equal([first.count, first.totalCount, first.isTruncated], [3, 5, true]);
    const rest = await indexes.listVectors("small", { account_id, count: 3, cursor: first.nextCursor });
    equal([rest.isTruncated, rest.nextCursor], [false, null]);
    equal(
      [...first.vectors, ...rest.vectors].map((one) => one.id),
      ["b", "c", "d", "e", "f"],
    );
  },
  async "insert a buffer, a file and a stream"() {
    writeFileSync("more.ndjson", line("i", 8));
    const bodies = [Buffer.from(line("g", 6)), new File([line("h", 7)], "h"), createReadStream("more.ndjson")];
    for (const body of bodies) await settled(await indexes.insert("small", { account_id, body }));
    equal(
      (await indexes.getByIDs("small", { account_id, ids: ["g", "h", "i"] })).map((one) => one.values),
      [axis(6), axis(7), axis(8)],
    );
  },
  async "lines that are no vectors"() {
    const body = `${line("j", 9)}\nnothing\n`;
    equal(await refusal(indexes.insert("small", { account_id, body })), [400, 40023]);
    await settled(await indexes.insert("small", { account_id, body, "unparsable-behavior": "discard" }));
    equal((await indexes.info("small", { account_id })).vectorCount, 9);
  },
  async "query by the id of a vector"() {
    // The SDK's types do not know `vectorId`; what it is given goes into the body.
    const { matches } = await indexes.query("small", { account_id, vectorId: "f", namespace: "n" });
    equal(matches, [{ id: "f", score: 1, namespace: "n" }]);
  },
  async "refusals are APIErrors"() {
    equal(await refusal(indexes.get("nowhere", { account_id })), [404, 3000]);
    equal(await refusal(indexes.query("small", { account_id, vector: [1] })), [400, 40006]);
    equal(
      await refusal(
        indexes.create({ account_id, name: "small", config: { dimensions: 32, metric: "cosine" } }),
      ),
      [400, 3002],
    );
  },
  async "delete metadata index and index"() {
    await settled(await indexes.metadataIndex.delete("small", { account_id, propertyName: "kind" }));
    equal(await indexes.delete("small", { account_id }), null);
    equal(await refusal(indexes.get("small", { account_id })), [410, 3005]);
  },
};

const results = [];
for (const [name, step] of Object.entries(STEPS)) {
  await step().then(
    () => results.push([name, ""]),
    (error) => results.push([name, `${error.stack}`]),
  );
}
console.log(JSON.stringify(results));
