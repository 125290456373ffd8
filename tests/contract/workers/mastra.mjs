// An integration that builds the SDK by itself: the environment points it here.
process.env.CLOUDFLARE_BASE_URL = `${process.env.HEADRACE_URL}/client/v4`;
const { CloudflareVector } = await import("@mastra/vectorize");

const store = new CloudflareVector({
  accountId: process.env.HEADRACE_ACCOUNT,
  apiToken: "local",
  id: "test",
});
const indexName = "notes";
const axis = (number) => Array.from({ length: 32 }, (_, place) => (place === number ? 1 : 0));

function equal(found, expected) {
  const [left, right] = [JSON.stringify(found), JSON.stringify(expected)];
  if (left !== right) throw new Error(`expected ${right}, and got ${left}`);
}

async function until(holds) {
  for (let turn = 0; turn < 600; turn += 1) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error("waited in vain");
}

const STEPS = {
  async createIndex() {
    await store.createIndex({ indexName, dimension: 32, metric: "cosine" });
    equal((await store.listIndexes()).includes(indexName), true);
    // A second time is fine when it is the same.
    await store.createIndex({ indexName, dimension: 32, metric: "cosine" });
  },
  async upsert() {
    const metadata = [{ kind: "x" }, { kind: "y" }];
    await store.upsert({ indexName, vectors: [axis(0), axis(1)], metadata, ids: ["a", "b"] });
    await until(async () => (await store.describeIndex({ indexName })).count === 2);
    equal(await store.describeIndex({ indexName }), { dimension: 32, count: 2, metric: "cosine" });
  },
  async query() {
    const [best] = await store.query({ indexName, queryVector: axis(1), topK: 1 });
    equal([best.id, best.score, best.metadata], ["b", 1, { kind: "y" }]);
  },
  async "query with a filter"() {
    await store.createMetadataIndex(indexName, "kind", "string");
    const asked = { indexName, queryVector: axis(1), topK: 5, filter: { kind: "x" } };
    await until(async () => (await store.query(asked)).length === 1);
    equal(
      (await store.query(asked)).map((one) => one.id),
      ["a"],
    );
  },
  async "metadata indexes"() {
    await until(async () => (await store.listMetadataIndexes(indexName)).length === 1);
    equal(await store.listMetadataIndexes(indexName), [{ propertyName: "kind", indexType: "String" }]);
    await store.deleteMetadataIndex(indexName, "kind");
    await until(async () => (await store.listMetadataIndexes(indexName)).length === 0);
  },
  async "updateVector, which sends no id"() {
    await store.updateVector({ indexName, id: "b", update: { vector: axis(2), metadata: { kind: "z" } } });
    await until(async () => (await store.describeIndex({ indexName })).count === 3);
    const [best] = await store.query({ indexName, queryVector: axis(2), topK: 1 });
    equal([best.id === "b", best.metadata], [false, { kind: "z" }]);
    await store.deleteVector({ indexName, id: best.id });
    await until(async () => (await store.describeIndex({ indexName })).count === 2);
  },
  async deleteVector() {
    await store.deleteVector({ indexName, id: "a" });
    await until(async () => (await store.describeIndex({ indexName })).count === 1);
  },
  async deleteIndex() {
    await store.deleteIndex({ indexName });
    equal((await store.listIndexes()).includes(indexName), false);
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
