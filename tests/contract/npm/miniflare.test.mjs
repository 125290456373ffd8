// What is done to a miniflare: to its two generations, to remote bindings, and to one that was built anew.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

const require = createRequire(import.meta.url);
const { patch } = require("../../../service/npm/package/miniflare.cjs");
const OPTIONS = { url: "http://127.0.0.1:1", token: "t", account: "acc", wait: false };

function binding(name, index, service = "original") {
  return {
    name,
    wrapped: {
      moduleName: "cloudflare-internal:vectorize-api",
      innerBindings: [
        { name: "fetcher", service: { name: service } },
        { name: "indexId", text: index },
        { name: "someday", text: "more" },
      ],
    },
  };
}

const four = () => ({
  options: {},
  getBindings: async ({ vectorize = {} }) =>
    Object.entries(vectorize).map(([name, one]) => binding(name, one.index_name)),
  getServices: async ({ options }) =>
    Object.keys(options.vectorize ?? {}).map((name) => ({ name: `original ${name}` })),
});
const five = () => ({
  getBindings: async ({ config }) =>
    Object.entries(config.env).flatMap(([name, one]) =>
      one.type === "vectorize" ? [binding(name, one.name)] : [],
    ),
  getServices: async ({ options }) => ({
    extensions: ["kept"],
    services: Object.values(options.config.env).some((one) => one.type === "vectorize")
      ? [{ name: "original" }]
      : [],
  }),
});
const WORKERS = {
  4: {
    vectorize: {
      LOCAL: { index_name: "docs" },
      REMOTE: { index_name: "docs", remoteProxyConnectionString: new URL("http://x") },
    },
  },
  5: {
    config: {
      env: {
        LOCAL: { type: "vectorize", name: "docs" },
        REMOTE: { type: "vectorize", name: "docs", dev: { remote: true } },
        KV: { type: "kv" },
      },
    },
  },
};

for (const [version, make] of [
  [4, four],
  [5, five],
]) {
  test(`version ${version}: a local binding gets our fetcher and keeps the rest, a remote one stays`, async () => {
    const plugin = make();
    const seen = [];
    patch({ PLUGINS: { vectorize: plugin } }, OPTIONS, { tell: (entry) => seen.push(entry) });

    const found = await plugin.getBindings(WORKERS[version]);

    assert.deepEqual(
      found.map(({ name, wrapped }) => [
        name,
        ...wrapped.innerBindings.map((one) => one.service?.name ?? one.text),
      ]),
      [
        ["LOCAL", "headrace:acc:docs", "docs", "more"],
        ["REMOTE", "original", "docs", "more"],
      ],
    );
    assert.deepEqual(
      seen.map(({ name, remote }) => [name, remote]),
      [
        ["LOCAL", false],
        ["REMOTE", true],
      ],
    );
  });

  test(`version ${version}: services are ours for local bindings, and miniflare's own for remote ones`, async () => {
    const plugin = make();
    patch({ PLUGINS: { vectorize: plugin } }, OPTIONS);

    const found = await plugin.getServices({ options: WORKERS[version] });

    const services = Array.isArray(found) ? found : found.services;
    assert.deepEqual(
      services.map((one) => one.name.split(" ")[0]),
      ["headrace:acc:docs", "original"],
    );
    const text = Object.fromEntries(services[0].worker.bindings.map((one) => [one.name, one.text]));
    assert.equal(text.address, "http://127.0.0.1:1/accounts/acc/_binding/docs");
    assert.equal(text.token, "t");
    if (version === 5) assert.deepEqual(found.extensions, ["kept"]);
  });
}

test("patching twice changes nothing more", async () => {
  const plugin = four();
  patch({ PLUGINS: { vectorize: plugin } }, OPTIONS);
  const { getBindings } = plugin;
  patch({ PLUGINS: { vectorize: plugin } }, OPTIONS);
  assert.equal(plugin.getBindings, getBindings);
});

test("a miniflare without the plugin is named, with its version", () => {
  const changed = { PLUGINS: {} };
  assert.throws(
    () => patch(changed, OPTIONS, { version: "9.0" }),
    /miniflare 9\.0 is not built as this package expects/,
  );
});

for (const [what, change] of Object.entries({
  "another module": (one) => (one.wrapped.moduleName = "elsewhere"),
  "no fetcher": (one) => one.wrapped.innerBindings.shift(),
  "no wrapped binding": (one) => delete one.wrapped,
})) {
  test(`bindings of another form are refused, not half served: ${what}`, async () => {
    const plugin = five();
    const { getBindings } = plugin;
    plugin.getBindings = async (options) => (await getBindings(options)).map((one) => (change(one), one));
    patch({ PLUGINS: { vectorize: plugin } }, OPTIONS, { version: "9.0" });

    await assert.rejects(plugin.getBindings(WORKERS[5]), { name: "InternalsChanged" });
  });
}

test("an old miniflare, whose wrangler drops local bindings, is told about", async () => {
  const plugin = {
    ...four(),
    getBindings: async () => assert.fail("Vectorize only supports running remotely"),
  };
  const said = await new Promise((resolve) =>
    patch({ PLUGINS: { vectorize: plugin } }, OPTIONS, { version: "4.1", warn: resolve }),
  );
  assert.match(said, /miniflare 4\.1 knows no local Vectorize bindings.*use wrangler 4\.100 or newer/);
});
