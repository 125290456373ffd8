// Puts Headrace behind the Vectorize bindings of a loaded miniflare.
//
// Its plugins are plain objects that it looks up for every run, so two methods of one of them are replaced. Bindings
// keep all that miniflare gives them but the fetcher. Those marked `remote: true` go to miniflare's own methods.
"use strict";

const { InternalsChanged, redirected, services } = require("./services.cjs");

const PATCHED = Symbol.for("headrace.patched");
// Version 4 wants one for a binding it shall make; nothing is ever sent there.
const NOWHERE = new URL("http://headrace.invalid");

// Where the two versions of miniflare keep a Worker's Vectorize bindings.
const SHAPES = [
  {
    knows: (options) => options?.config !== undefined,
    entries: (options) =>
      Object.entries(options.config.env ?? {}).flatMap(([name, one]) =>
        one?.type === "vectorize" ? [{ name, index: one.name, remote: Boolean(one.dev?.remote) }] : [],
      ),
    only: (options, names) => ({
      ...options,
      config: {
        ...options.config,
        env: Object.fromEntries(
          Object.entries(options.config.env ?? {}).filter(
            ([name, one]) => one?.type !== "vectorize" || names.has(name),
          ),
        ),
      },
    }),
  },
  {
    knows: (options) => options !== undefined && options.config === undefined,
    entries: (options) =>
      Object.entries(options.vectorize ?? {}).map(([name, one]) => ({
        name,
        index: one.index_name,
        remote: Boolean(one.remoteProxyConnectionString),
      })),
    only: (options, names) => ({
      ...options,
      vectorize: Object.fromEntries(
        Object.entries(options.vectorize ?? {})
          .filter(([name]) => names.has(name))
          .map(([name, one]) => [name, { remoteProxyConnectionString: NOWHERE, ...one }]),
      ),
    }),
  },
];

function split(options, version) {
  const shape = SHAPES.find((one) => one.knows(options));
  if (shape === undefined) throw new InternalsChanged("a Worker's options have another form", version);
  const entries = shape.entries(options);
  const ours = entries.filter((one) => !one.remote);
  if (ours.some((one) => typeof one.index !== "string")) {
    throw new InternalsChanged("a Vectorize binding names no index", version);
  }
  const of = (some) => shape.only(options, new Set(some.map((one) => one.name)));
  return { ours, oursOnly: of(ours), rest: of(entries.filter((one) => one.remote)), entries };
}

// Where miniflare itself refuses bindings that are not remote, its wrangler leaves them out before we could see them.
async function isTooOld(plugin, getBindings) {
  if (plugin.options === undefined) return false;
  try {
    await getBindings.call(plugin, { vectorize: { PROBE: { index_name: "probe" } } });
    return false;
  } catch {
    return true;
  }
}

function patch(miniflare, options, { version = "", tell = () => {}, warn = () => {} } = {}) {
  const plugin = miniflare?.PLUGINS?.vectorize;
  if (typeof plugin?.getBindings !== "function" || typeof plugin.getServices !== "function") {
    throw new InternalsChanged("it has no plugin called vectorize", version);
  }
  if (plugin[PATCHED]) return;
  plugin[PATCHED] = true;
  const { getBindings, getServices } = plugin;
  isTooOld(plugin, getBindings).then((old) => {
    if (!old) return;
    warn(
      `miniflare ${version} knows no local Vectorize bindings, and its wrangler drops them: ` +
        "use wrangler 4.100 or newer, or name the plugin in the Worker's configuration (see the package's README)",
    );
  });

  plugin.getBindings = async function (workerOptions, ...rest) {
    const parts = split(workerOptions, version);
    const made = (await getBindings.call(this, parts.oursOnly, ...rest)) ?? [];
    const others = (await getBindings.call(this, parts.rest, ...rest)) ?? [];
    const bindings = parts.ours.map(({ name, index }) => {
      const binding = made.find((one) => one.name === name);
      return redirected(options, binding, index, version);
    });
    for (const entry of parts.entries) tell(entry);
    return [...bindings, ...others];
  };

  plugin.getServices = async function (context) {
    const parts = split(context.options, version);
    const found = await getServices.call(this, { ...context, options: parts.rest });
    const ours = services(
      options,
      parts.ours.map((one) => one.index),
    );
    if (found === undefined || Array.isArray(found)) return [...ours, ...(found ?? [])];
    return { ...found, services: [...ours, ...found.services] };
  };
}

module.exports = { patch };
