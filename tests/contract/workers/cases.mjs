// What a Worker can ask of a Vectorize binding, as checks that run inside the Worker. The same list runs under every
// client; each check gets the binding of an index `docs` (32 dimensions, cosine, metadata indexes on kind and year) and
// of an index `fresh` that nobody made.

const axis = (number) => Array.from({ length: 32 }, (_, place) => (place === number ? 1 : 0));

export const CASES = {
  async "describe an index"({ docs }) {
    equal((await docs.describe()).dimensions, 32);
  },
  async "insert, and wait until describe names it"({ docs }) {
    const { mutationId } = await docs.insert([
      { id: "a", values: axis(0), metadata: { kind: "x", year: 2020, note: { deep: "äöü" } } },
      { id: "b", values: axis(1), metadata: { kind: "y", year: 2021 }, namespace: "n" },
      { id: "c", values: axis(2) },
    ]);
    matches(mutationId, /^[0-9a-f-]{36}$/);
    await until(async () => (await docs.describe()).processedUpToMutation === mutationId);
    equal((await docs.describe()).vectorCount, 3);
  },
  async "insert keeps what is there"({ docs }) {
    await settled(docs, docs.insert([{ id: "a", values: axis(9) }]));
    equal((await docs.getByIds(["a"]))[0].values, axis(0));
  },
  async "upsert replaces, from typed arrays as well"({ docs }) {
    const values = new Float32Array(32);
    values[3] = 0.1;
    await settled(docs, docs.upsert([{ id: "d", values, metadata: { kind: "x", year: 1999 } }]));
    const [found] = await docs.getByIds(["d"]);
    equal(found, { id: "d", values: Array.from(values), metadata: { kind: "x", year: 1999 } });
    await settled(docs, docs.upsert([{ id: "d", values: new Float64Array(axis(3)) }]));
    equal(await docs.getByIds(["d"]), [{ id: "d", values: axis(3) }]);
  },
  async "query with the defaults"({ docs }) {
    const found = await docs.query(axis(1));
    equal([found.count, found.matches.length], [4, 4]);
    equal(found.matches[0], { id: "b", score: 1, namespace: "n" });
  },
  async "query with a typed array and topK"({ docs }) {
    const found = await docs.query(new Float32Array(axis(2)), { topK: 1 });
    equal(found, { count: 1, matches: [{ id: "c", score: 1 }] });
  },
  async "query with values"({ docs }) {
    const {
      matches: [best],
    } = await docs.query(axis(0), { topK: 1, returnValues: true });
    equal(best.values, axis(0));
  },
  async "query with every kind of metadata"({ docs }) {
    const all = { kind: "x", year: 2020, note: { deep: "äöü" } };
    const expected = [
      [true, all],
      ["all", all],
      ["indexed", { kind: "x", year: 2020 }],
      ["none", undefined],
      [false, undefined],
    ];
    for (const [returnMetadata, metadata] of expected) {
      const {
        matches: [best],
      } = await docs.query(axis(0), { topK: 1, returnMetadata });
      equal(best.metadata, metadata);
    }
  },
  async "query with filters"({ docs }) {
    const asked = async (filter) =>
      (await docs.query(axis(0), { topK: 10, filter })).matches.map((one) => one.id).sort();
    equal(await asked({ kind: "x" }), ["a"]);
    equal(await asked({ kind: { $ne: "x" } }), ["b", "c", "d"]);
    equal(await asked({ kind: { $in: ["x", "y"] } }), ["a", "b"]);
    equal(await asked({ year: { $gte: 2021, $lt: 2030 } }), ["b"]);
    equal(await asked({ kind: "x", year: 1 }), []);
    equal(await asked({ unindexed: 1 }), []);
  },
  async "query in a namespace"({ docs }) {
    const found = await docs.query(axis(0), { namespace: "n" });
    equal(
      found.matches.map((one) => one.id),
      ["b"],
    );
    equal((await docs.query(axis(0), { namespace: "nobody" })).matches, []);
  },
  async queryById({ docs }) {
    const found = await docs.queryById("b", { topK: 1, returnMetadata: "all" });
    equal(found.matches, [{ id: "b", score: 1, namespace: "n", metadata: { kind: "y", year: 2021 } }]);
    equal((await docs.queryById("nobody")).count, 0);
  },
  async "getByIds leaves out what is not there"({ docs }) {
    equal(
      (await docs.getByIds(["c", "nobody", "a"])).map((one) => one.id),
      ["c", "a"],
    );
  },
  async deleteByIds({ docs }) {
    await settled(docs, docs.deleteByIds(["c", "nobody"]));
    equal(await docs.getByIds(["c"]), []);
  },
  async "a query of wrong length is refused"({ docs }) {
    const text =
      "VECTOR_QUERY_ERROR (code = 40006): invalid query vector, expected 32 dimensions, and got 2 dimensions";
    equal(await refusal(docs.query([1, 2])), text);
  },
  async "a vector of wrong length is refused"({ docs }) {
    const text =
      'VECTOR_UPSERT_ERROR (code = 40012): invalid vector for id="e", expected 32 dimensions, and got 1 dimensions';
    equal(await refusal(docs.upsert([{ id: "e", values: [1] }])), text);
    matches(
      await refusal(docs.insert([{ id: "e", values: [1] }])),
      /^VECTOR_INSERT_ERROR \(code = 40012\): /,
    );
  },
  async "a vector with NaN is refused"({ docs }) {
    const values = new Float32Array(32).fill(NaN);
    matches(
      await refusal(docs.insert([{ id: "e", values }])),
      /^VECTOR_INSERT_ERROR \(code = 40012\): .*"e"/,
    );
  },
  async "too many ids are refused"({ docs }) {
    const ids = Array.from({ length: 21 }, (_, number) => `id-${number}`);
    const text = "VECTOR_GET_ERROR (code = 40007): too many ids in payload; max id count is 20, got 21";
    equal(await refusal(docs.getByIds(ids)), text);
    const none = await refusal(docs.deleteByIds([]));
    matches(none, /^VECTOR_DELETE_ERROR \(code = 40026\): /);
  },
  async "too large a topK is refused"({ docs }) {
    const text = "VECTOR_QUERY_ERROR (code = 40025): max top K is 100, but got 101";
    equal(await refusal(docs.query(axis(0), { topK: 101 })), text);
    matches(
      await refusal(docs.query(axis(0), { topK: 51, returnMetadata: "all" })),
      /max top K is 50, but got 51/,
    );
  },
  async "a wrong returnMetadata is refused before it is sent"({ docs }) {
    const text = await refusal(docs.query(axis(0), { returnMetadata: "some" }));
    equal(
      text,
      'Invalid returnMetadata option. Expected: true, false, "none", "indexed" or "all"; got: some',
    );
  },
  async "a wrong filter is refused"({ docs }) {
    matches(
      await refusal(docs.query(axis(0), { filter: { kind: { $near: 1 } } })),
      /^VECTOR_QUERY_ERROR \(code = \d+\): /,
    );
  },
  async "an index that nobody made says how to make it"({ fresh }) {
    const text = await refusal(fresh.describe());
    matches(text, /^INDEX_GET_ERROR \(code = 3000\): vectorize.index.not_found - Index name "fresh[^"]*"/);
    matches(text, /wrangler vectorize create fresh/);
  },
  async "the first write makes the index"({ fresh }) {
    await settled(fresh, fresh.upsert([{ id: "a", values: new Float32Array(48).fill(0.5) }]));
    equal(await fresh.describe().then((one) => [one.dimensions, one.vectorCount]), [48, 1]);
    const {
      matches: [best],
    } = await fresh.query(new Float32Array(48).fill(0.25), { topK: 1 });
    equal(best, { id: "a", score: 1 });
  },
  async "a thousand vectors at once, and no more"({ docs }) {
    const many = Array.from({ length: 1000 }, (_, number) => ({
      id: `m${number}`,
      values: axis(number % 32),
    }));
    equal(
      await refusal(docs.upsert([...many, ...many])),
      "VECTOR_UPSERT_ERROR (code = 40007): too many vectors in payload; max vector count is 1000, got 2000",
    );
    const before = (await docs.describe()).vectorCount;
    await settled(docs, docs.upsert(many));
    equal((await docs.describe()).vectorCount, before + 1000);
  },
};

/** Every case in order, as `[name, ""]` or `[name, what went wrong]`. */
export async function runCases(bindings) {
  const results = [];
  for (const [name, check] of Object.entries(CASES)) {
    try {
      await check(bindings);
      results.push([name, ""]);
    } catch (error) {
      results.push([name, `${error?.stack ?? error}`]);
    }
  }
  return results;
}

async function settled(index, mutation) {
  const { mutationId } = await mutation;
  await until(async () => (await index.describe()).processedUpToMutation === mutationId);
}

async function until(holds) {
  for (let turn = 0; turn < 600; turn += 1) {
    if (await holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error("waited in vain");
}

async function refusal(promise) {
  try {
    await promise;
  } catch (error) {
    return error.message;
  }
  throw new Error("expected a refusal, and got an answer");
}

function equal(found, expected) {
  const [left, right] = [canonical(found), canonical(expected)];
  if (left !== right) throw new Error(`expected ${right}, and got ${left}`);
}

function canonical(value) {
  const sorted = (one) =>
    one !== null && typeof one === "object" && !Array.isArray(one)
      ? Object.fromEntries(
          Object.keys(one)
            .sort()
            .map((key) => [key, one[key]]),
        )
      : one;
  return JSON.stringify(value, (_, one) => sorted(one)) ?? "undefined";
}

function matches(text, pattern) {
  if (!pattern.test(text)) throw new Error(`expected ${pattern}, and got ${text}`);
}
