// A plugin of miniflare, named in the Worker's configuration: needs none of miniflare's internals.
//
//   "unsafe": { "bindings": [{ "name": "VECTORIZE", "type": "vectorize", "index_name": "docs",
//     "dev": { "plugin": { "package": "headrace", "name": "headrace" } } }] }
//
// Version 4 of miniflare hands over an array of such bindings, version 5 a Worker's whole options.
"use strict";

const { resolveOptions } = require("./options.cjs");
const { services, wrapped } = require("./services.cjs");

const PLUGIN_NAME = "headrace";

function entries(options) {
  if (Array.isArray(options)) {
    return options.map(({ name, options: own }) => ({ name, own: own ?? {} }));
  }
  return Object.entries(options?.config?.env ?? {}).flatMap(([name, binding]) =>
    binding?.dev?.plugin?.name === PLUGIN_NAME ? [{ name, own: { ...binding, ...binding.dev.options } }] : [],
  );
}

function read(options) {
  return entries(options).map(({ name, own }) => {
    const index = own.index_name ?? own.index;
    if (typeof index !== "string") {
      throw new Error(
        `headrace: the binding ${name} names no index; put "index_name": "..." beside its "name", or into dev.options`,
      );
    }
    const given = { url: own.url, account: own.account, wait: own.wait };
    return { name, index, options: resolveOptions(given) };
  });
}

// Miniflare compares with its own class, and several copies of it may be loaded: the one that called knows.
function proxyNodeBinding() {
  const prepare = Error.prepareStackTrace;
  Error.prepareStackTrace = (_, frames) => frames.map((frame) => frame.getFileName());
  const files = new Error().stack;
  Error.prepareStackTrace = prepare;
  for (const file of files) {
    const exported = file && require.cache[file.replace(/^file:\/\//, "")]?.exports;
    if (typeof exported?.ProxyNodeBinding === "function") return new exported.ProxyNodeBinding();
  }
  throw new Error(
    "headrace: this version of miniflare has no ProxyNodeBinding; look for a newer headrace package",
  );
}

const passes = (value) => value;
const plugin = {
  // Version 4 parses options with these before it hands them over.
  options: { parse: passes, safeParse: (data) => ({ success: true, data }) },
  bindingTypeDescription: "Vectorize index",
  getBindings: async (options) => read(options).map((one) => wrapped(one.options, one.name, one.index)),
  getNodeBindings: (options) =>
    Object.fromEntries(read(options).map(({ name }) => [name, proxyNodeBinding()])),
  getServices: async ({ options }) => {
    const found = read(options).flatMap((one) => services(one.options, [one.index]));
    return [...new Map(found.map((one) => [one.name, one])).values()];
  },
};

// In this form `import()` sees the name without running us.
exports.plugins = { [PLUGIN_NAME]: plugin };
