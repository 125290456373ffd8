// Loaded into every Node process (`node --require headrace/register`): waits for miniflare and patches it.
"use strict";

const Module = require("node:module");
const path = require("node:path");
const { resolveOptions } = require("./options.cjs");
const { patch } = require("./miniflare.cjs");

const HOOKED = Symbol.for("headrace.hooked");
const told = new Set();

function isMiniflare(exported) {
  return typeof exported?.Miniflare === "function" && "PLUGINS" in exported;
}

function versionOf(file) {
  for (let folder = path.dirname(file); folder !== path.dirname(folder); folder = path.dirname(folder)) {
    try {
      const { name, version } = require(path.join(folder, "package.json"));
      if (name === "miniflare") return version;
    } catch {
      // Not the folder of the package yet.
    }
  }
  return "of unknown version";
}

function apply(exported, file) {
  const options = resolveOptions();
  const tell = ({ name, index, remote }) => {
    const line = remote
      ? `headrace: env.${name} has remote: true and is left alone`
      : `headrace: env.${name} is index "${index}" at ${options.url} (account ${options.account})`;
    if (!told.has(line)) process.stderr.write(`${line}\n`);
    told.add(line);
  };
  const version = versionOf(file);
  patch(exported, options, { version, tell, warn: (text) => process.stderr.write(`headrace: ${text}\n`) });
}

function register() {
  // Somebody may have loaded it before us: a configuration file that imports a plugin, for one.
  for (const [file, loaded] of Object.entries(Module._cache)) {
    if (file.includes("miniflare") && loaded.loaded && isMiniflare(loaded.exports))
      apply(loaded.exports, file);
  }
  if (globalThis[HOOKED]) return;
  globalThis[HOOKED] = true;
  const load = Module._load;
  Module._load = function (request, parent, isMain) {
    const exported = load.call(this, request, parent, isMain);
    if (typeof request === "string" && request.includes("miniflare") && isMiniflare(exported)) {
      let file = request;
      try {
        file = Module._resolveFilename(request, parent, isMain);
      } catch {
        // The version is only for messages.
      }
      apply(exported, file.replace(/^file:\/\//, ""));
    }
    return exported;
  };
}

register();
