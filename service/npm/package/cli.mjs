#!/usr/bin/env node
// npx headrace [options] COMMAND ...: runs a command with Headrace behind the Vectorize bindings it makes.

import { spawn } from "node:child_process";
import path from "node:path";
import { fileURLToPath } from "node:url";
import settings from "./options.cjs";
import { Unusable, ensure, remark } from "./server.mjs";

const HELP = `Usage: npx headrace [options] COMMAND [arguments]

Runs COMMAND with Headrace behind every Vectorize binding of a Worker that it runs locally:

  npx headrace wrangler dev
  npx headrace vite dev
  npx headrace --wait vitest run
  npx headrace node script.mjs          (getPlatformProxy, Miniflare)

Code and configuration stay as they are. Bindings with "remote": true are left alone. When nothing answers at the
address and the Python program headrace is installed, \`headrace dev\` is started, and stopped at the end.

  --url URL          where Headrace is (HEADRACE_URL; default ${settings.URL_DEFAULT})
  --token TOKEN      its token (HEADRACE_TOKEN)
  --account ACCOUNT  whose indexes (HEADRACE_ACCOUNT, CLOUDFLARE_ACCOUNT_ID; default ${settings.ACCOUNT_DEFAULT})
  --wait             writes return when they can be found: for tests (HEADRACE_WAIT=true)
  --data DIR         where a server that is started keeps its data (default headrace-data)
  --no-start         never start a server
`;

const VALUES = new Set(["--url", "--token", "--account", "--data"]);

function parse(words) {
  const given = { mayStart: true, command: [] };
  for (let place = 0; place < words.length; place += 1) {
    const [word, inline] = /^(--[a-z-]+)=(.*)$/.exec(words[place])?.slice(1) ?? [words[place]];
    if (VALUES.has(word)) {
      const value = inline ?? words[(place += 1)];
      if (value === undefined) throw new Unusable(`${word} needs a value`);
      given[word.slice(2)] = value;
    } else if (word === "--wait") given.wait = true;
    else if (word === "--no-start") given.mayStart = false;
    else if (word === "--help" || word === "-h") given.help = true;
    else if (word.startsWith("-") && word !== "--")
      throw new Unusable(`${word} is no option; npx headrace --help lists them`);
    else {
      given.command = words.slice(word === "--" ? place + 1 : place);
      break;
    }
  }
  return given;
}

// So that `wrangler` is the project's own, as in a script of package.json.
function searchPath() {
  const folders = [];
  for (let folder = process.cwd(); ; folder = path.dirname(folder)) {
    folders.push(path.join(folder, "node_modules", ".bin"));
    if (folder === path.dirname(folder)) return [...folders, process.env.PATH ?? ""].join(path.delimiter);
  }
}

function nodeOptions() {
  const file = path.join(path.dirname(fileURLToPath(import.meta.url)), "register.cjs");
  const quoted = file.replace(/[\\"]/g, "\\$&");
  return [process.env.NODE_OPTIONS, `--require "${quoted}"`].filter(Boolean).join(" ");
}

function run([command, ...rest], options) {
  const env = {
    ...process.env,
    ...settings.environmentOf(options),
    PATH: searchPath(),
    NODE_OPTIONS: nodeOptions(),
  };
  const child = spawn(command, rest, { stdio: "inherit", env, shell: process.platform === "win32" });
  // The terminal sends Ctrl-C to both of us; it is the command that decides when to end.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
    process.on(signal, () => signal === "SIGINT" || child.kill(signal));
  }
  return new Promise((resolve, reject) => {
    child.on("error", (error) =>
      reject(
        new Unusable(
          error.code === "ENOENT" ? `there is no command ${command}; is it installed?` : error.message,
        ),
      ),
    );
    child.on("exit", (code, signal) => resolve(code ?? 128 + (signal === "SIGINT" ? 2 : 15)));
  });
}

async function main(words) {
  const { mayStart, data, help, command, ...given } = parse(words);
  if (help || command.length === 0) {
    process.stdout.write(HELP);
    return help ? 0 : 2;
  }
  const { options, status, said, stop } = await ensure(given, { mayStart, data });
  for (const line of [...said, remark(status, options)])
    if (line) process.stderr.write(`headrace: ${line}\n`);
  try {
    return await run(command, options);
  } finally {
    await stop();
  }
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof Unusable)) throw error;
  process.stderr.write(`headrace: ${error.message}\n`);
  process.exitCode = 2;
}
