// What miniflare is given instead of its own: a service for each index, and bindings whose fetcher is that service.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const { bindingAddress } = require("./options.cjs");

const MODULE = "cloudflare-internal:vectorize-api";
let adapter;

class InternalsChanged extends Error {
  constructor(what, version) {
    super(
      `headrace: miniflare ${version} is not built as this package expects (${what}), so env.VECTORIZE cannot be ` +
        "put behind Headrace this way. Look for a newer package at HEADRACE_URL/npm/headrace.tgz, or name Headrace " +
        "in the Worker's configuration instead: the plugin needs none of miniflare's internals.",
    );
    this.name = "InternalsChanged";
  }
}

function serviceName(options, index) {
  return `headrace:${options.account}:${index}`;
}

function service(options, index) {
  adapter ??= fs.readFileSync(path.join(__dirname, "adapter.worker.js"), "utf8");
  const text = (name, value) => ({ name, text: value });
  return {
    name: serviceName(options, index),
    worker: {
      compatibilityDate: "2024-09-23",
      modules: [{ name: "adapter.worker.js", esModule: adapter }],
      bindings: [
        text("address", bindingAddress(options, index)),
        text("search", options.wait ? "?wait=true" : ""),
        text("url", options.url),
        text("token", options.token),
        text("account", options.account),
      ],
    },
  };
}

function services(options, indexes) {
  return [...new Set(indexes)].map((index) => service(options, index));
}

// The class that a Worker sees is workerd's own.
function wrapped(options, name, index) {
  return {
    name,
    wrapped: {
      moduleName: MODULE,
      innerBindings: [
        { name: "fetcher", service: { name: serviceName(options, index) } },
        { name: "indexId", text: index },
        { name: "indexVersion", text: "v2" },
        { name: "useNdJson", json: "true" },
      ],
    },
  };
}

// A binding as miniflare made it, with our fetcher in it: whatever else a newer one puts there stays.
function redirected(options, binding, index, version) {
  const inner = binding?.wrapped?.innerBindings;
  if (
    binding?.wrapped?.moduleName !== MODULE ||
    !Array.isArray(inner) ||
    !inner.some((one) => one.name === "fetcher")
  ) {
    throw new InternalsChanged("its Vectorize bindings have another form", version);
  }
  const fetcher = { name: "fetcher", service: { name: serviceName(options, index) } };
  return {
    ...binding,
    wrapped: {
      ...binding.wrapped,
      innerBindings: inner.map((one) => (one.name === "fetcher" ? fetcher : one)),
    },
  };
}

module.exports = { InternalsChanged, services, wrapped, redirected };
