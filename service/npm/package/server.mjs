// Finds a Headrace server, or starts one: `headrace dev` of the installed Python program.

import { spawn } from "node:child_process";
import fs from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import settings from "./options.cjs";

const START_S = 60;
const ASK_MS = 5_000;
const OWN = fs.realpathSync(path.join(path.dirname(fileURLToPath(import.meta.url)), "cli.mjs"));

/** What a person can put right; the message says how. */
export class Unusable extends Error {}

/** The server's status, or undefined when nothing listens. Throws Unusable for a stranger and for a refused token. */
export async function look(options) {
  if (new URL(options.url).port === "0") return undefined;
  const url = `${options.url}/accounts/${encodeURIComponent(options.account)}/_binding`;
  let response;
  try {
    const headers = options.token ? { Authorization: `Bearer ${options.token}` } : {};
    response = await fetch(url, { headers, signal: AbortSignal.timeout(ASK_MS) });
  } catch (error) {
    if (error?.cause?.code === "ECONNREFUSED") return undefined;
    throw new Unusable(`${options.url} cannot be asked: ${error?.cause?.message ?? error.message}`);
  }
  if (response.status === 401 || response.status === 403) {
    throw new Unusable(
      `Headrace at ${options.url} refuses ${options.token ? "the token" : "requests without a token"}; ` +
        "set HEADRACE_TOKEN to one it knows, or use --token",
    );
  }
  const status = await response.json().catch(() => ({}));
  if (typeof status.headrace !== "string") {
    throw new Unusable(
      `what answers at ${options.url} (status ${response.status}) is not Headrace, or an older one; ` +
        "name another address with --url",
    );
  }
  return status;
}

/** A remark on versions that differ, or nothing. */
export function remark(status, options) {
  const own = JSON.parse(fs.readFileSync(new URL("./package.json", import.meta.url), "utf8")).version;
  // 0.0.0 is the source tree, which is the server's own.
  if (status.headrace === own || own === "0.0.0") return "";
  const theirs = `${options.url}/npm/headrace.tgz`;
  return `the server is version ${status.headrace}, this package ${own}; for its own: npm i -D ${theirs}`;
}

/** Start `headrace dev`. Resolves with `{ url, command, data, stop }` when it answers; throws Unusable. */
export async function start(options, { data, level = "warning" } = {}) {
  const { hostname, port, protocol } = new URL(options.url);
  if (protocol !== "http:" || !["127.0.0.1", "localhost", "[::1]"].includes(hostname)) {
    throw new Unusable(`nothing answers at ${options.url}, and it is not this machine's to start`);
  }
  const command = find();
  if (command === undefined) {
    const missing = port === "0" ? "" : `nothing answers at ${options.url}, and `;
    throw new Unusable(
      `${missing}there is no Python program \`headrace\` to start; ` +
        "install its wheel (on the path or in .venv), or start a server yourself and name it with --url",
    );
  }
  const host = hostname.replace(/[[\]]/g, "");
  const given = ["dev", "--stop-with-input", "--host", host, "--port", port || "80", ...(data ? ["--data", data] : [])];
  if (options.wait) given.push("--writes-wait");
  const child = spawn(command, [...given, "--log-level", level], {
    // Its input ends with us, however we end, and it stops then.
    stdio: ["pipe", "pipe", "inherit"],
    // A group of its own: Ctrl-C is for the command that uses the server, which stops it when it has ended.
    detached: process.platform !== "win32",
  });
  const first = await firstLine(child);
  const found = /listens on (http:\/\/\S+) \(data in (.*), limits/.exec(first);
  if (!found) throw new Unusable(`\`${command} dev\` did not start; what it said is above`);
  child.stdout.resume();
  child.unref();
  child.stdout.unref?.();
  child.stdin.unref?.();
  return { url: found[1], command, data: found[2], stop: () => stop(child) };
}

function stop(child) {
  if (child.exitCode !== null || child.signalCode !== null) return Promise.resolve();
  return new Promise((resolve) => {
    child.ref();
    child.once("exit", resolve);
    child.kill("SIGTERM");
  });
}

function firstLine(child) {
  return new Promise((resolve, reject) => {
    let text = "";
    const timer = setTimeout(
      () => reject(new Unusable(`headrace dev said nothing for ${START_S} s`)),
      START_S * 1000,
    );
    const done = () => {
      clearTimeout(timer);
      resolve(text);
    };
    child.stdout.on("data", (chunk) => {
      text += chunk;
      if (text.includes("\n")) done();
    });
    child.on("error", done);
    child.on("exit", done);
  });
}

/** The Python program: on the path, or in a virtual environment of this folder or one above. It is not this package. */
export function find(env = process.env, folder = process.cwd()) {
  const folders = (env.PATH ?? "").split(path.delimiter);
  for (let at = folder; ; at = path.dirname(at)) {
    for (const name of [".venv", "venv"])
      folders.push(path.join(at, name, "bin"), path.join(at, name, "Scripts"));
    if (at === path.dirname(at)) break;
  }
  for (const one of folders.filter((text) => text && !/node_modules[\\/]\.bin/.test(text))) {
    for (const name of process.platform === "win32" ? ["headrace.exe"] : ["headrace"]) {
      const file = path.join(one, name);
      try {
        fs.accessSync(file, fs.constants.X_OK);
        if (fs.statSync(file).isFile() && fs.realpathSync(file) !== OWN) return file;
      } catch {
        // Not here.
      }
    }
  }
  return undefined;
}

/** Find a server or start one; returns its status, what was done in words, and how to undo it. */
export async function ensure(given = {}, { mayStart = true, data, level } = {}) {
  const options = settings.resolveOptions(given);
  const status = await look(options);
  if (status !== undefined) {
    return { options, status, said: [`uses the server at ${options.url}`], stop: async () => {} };
  }
  if (!mayStart) throw new Unusable(`nothing answers at ${options.url}; start it with: headrace dev`);
  const server = await start(options, { data, level });
  const running = { ...options, url: server.url };
  const said = [
    `started ${server.command} dev at ${server.url} (data in ${server.data}); it stops with this command`,
  ];
  return { options: running, status: await look(running), said, stop: server.stop };
}
