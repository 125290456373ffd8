// Where Headrace is, from the environment: HEADRACE_URL, HEADRACE_TOKEN, HEADRACE_ACCOUNT, HEADRACE_WAIT.
"use strict";

const URL_DEFAULT = "http://127.0.0.1:8787";
const ACCOUNT_DEFAULT = "local";

// The account of the environment is the one that `wrangler vectorize create` uses, so both mean the same index.
function resolveOptions(given = {}, env = process.env) {
  const url = String(given.url || env.HEADRACE_URL || URL_DEFAULT).replace(/\/+$/, "");
  return {
    url: url.replace(/\/client\/v4$/, ""),
    token: given.token ?? env.HEADRACE_TOKEN ?? "",
    account: given.account || env.HEADRACE_ACCOUNT || env.CLOUDFLARE_ACCOUNT_ID || ACCOUNT_DEFAULT,
    wait: given.wait ?? ["1", "true", "yes", "on"].includes((env.HEADRACE_WAIT ?? "").toLowerCase()),
  };
}

function bindingAddress(options, index) {
  return `${options.url}/accounts/${encodeURIComponent(options.account)}/_binding/${encodeURIComponent(index)}`;
}

function environmentOf(options) {
  return {
    HEADRACE_URL: options.url,
    HEADRACE_ACCOUNT: options.account,
    HEADRACE_WAIT: String(options.wait),
    ...(options.token ? { HEADRACE_TOKEN: options.token } : {}),
  };
}

module.exports = { URL_DEFAULT, ACCOUNT_DEFAULT, resolveOptions, bindingAddress, environmentOf };
