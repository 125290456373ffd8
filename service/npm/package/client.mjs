// Headrace with the methods of a Worker's binding, for any place that has fetch: a Worker, Node, a browser's test.
//
// Names of operations and texts of errors are those of the real binding, so code that looks at them goes on working.

import settings from "./options.cjs";

const LEVELS = new Set(["none", "indexed", "all"]);

export class VectorizeIndex {
  #address;
  #search;
  #options;

  constructor(index, options = {}) {
    if (typeof index !== "string" || index === "")
      throw new TypeError("headrace: the name of an index is needed");
    this.#options = settings.resolveOptions(options, globalThis.process?.env ?? {});
    this.#address = settings.bindingAddress(this.#options, index);
    this.#search = this.#options.wait ? "?wait=true" : "";
  }

  describe() {
    return this.#send("INDEX_GET", "info");
  }

  async query(vector, options) {
    return this.#query(options, { vector: numbers(vector) });
  }

  async queryById(vectorId, options) {
    return this.#query(options, { vectorId });
  }

  async insert(vectors) {
    return this.#write("VECTOR_INSERT", "insert", vectors);
  }

  async upsert(vectors) {
    return this.#write("VECTOR_UPSERT", "upsert", vectors);
  }

  async getByIds(ids) {
    return this.#send("VECTOR_GET", "getByIds", JSON.stringify({ ids }));
  }

  async deleteByIds(ids) {
    return this.#send("VECTOR_DELETE", "deleteByIds", JSON.stringify({ ids }));
  }

  #query(options, what) {
    const level = options?.returnMetadata;
    if (level && typeof level !== "boolean" && !LEVELS.has(level)) {
      throw new Error(
        `Invalid returnMetadata option. Expected: true, false, "none", "indexed" or "all"; got: ${level}`,
      );
    }
    return this.#send("VECTOR_QUERY", "query", JSON.stringify({ ...options, ...what }));
  }

  #write(operation, path, vectors) {
    const headers = {
      "Content-Type": "application/x-ndjson",
      // The server counts by it before it reads, as for the real binding.
      "CF-Vector-Search-Dim-Height": String(vectors.length),
    };
    return this.#send(operation, path, lines(vectors), headers);
  }

  async #send(operation, path, body, more = { "Content-Type": "application/json" }) {
    const { url, token, account } = this.#options;
    const headers = { ...(body === undefined ? {} : more) };
    if (token) headers.Authorization = `Bearer ${token}`;
    const method = body === undefined ? "GET" : "POST";
    let response;
    try {
      response = await fetch(`${this.#address}/${path}${this.#search}`, { method, headers, body });
    } catch (cause) {
      throw failure(
        operation,
        {
          error: `Headrace does not answer at ${url}; start it with: headrace dev`,
        },
        cause,
      );
    }
    const text = await response.text();
    let answer;
    try {
      answer = JSON.parse(text);
    } catch {
      answer = {};
    }
    if (response.status === 200) return answer;
    if (typeof answer.error !== "string") {
      answer = {
        error: `what answers at ${url} is not Headrace, or an older one (status ${response.status})`,
      };
    } else if (response.status === 401 || response.status === 403) {
      answer.error += `; Headrace at ${url} refuses the token: set HEADRACE_TOKEN to one it knows`;
    } else if (response.status === 404 || response.status === 410) {
      answer.error += ` (Headrace at ${url}, account ${account})`;
    }
    throw failure(operation, answer);
  }
}

/** Remove an index and make it again as it was, empty: config, description and metadata indexes stay. */
export async function resetIndex(index, options = {}) {
  const { url, token, account } = settings.resolveOptions(options, globalThis.process?.env ?? {});
  const root = `${url}/client/v4/accounts/${encodeURIComponent(account)}/vectorize/v2/indexes`;
  const ask = async (method, path, body) => {
    const headers = {
      "Content-Type": "application/json",
      ...(token ? { Authorization: `Bearer ${token}` } : {}),
    };
    const response = await fetch(`${root}${path}`, { method, headers, body: body && JSON.stringify(body) });
    const answer = await response.json();
    if (response.status === 404 || response.status === 410) return undefined;
    if (!answer.success) throw new Error(`headrace: ${method} ${path}: ${JSON.stringify(answer.errors)}`);
    return answer.result;
  };
  const found = await ask("GET", `/${index}`);
  if (found === undefined) return;
  const { metadataIndexes } = await ask("GET", `/${index}/metadata_index/list`);
  await ask("DELETE", `/${index}`);
  await ask("POST", "", { name: index, description: found.description, config: found.config });
  for (const { propertyName, indexType } of metadataIndexes) {
    await ask("POST", `/${index}/metadata_index/create?wait=true`, { propertyName, indexType });
  }
}

function numbers(values) {
  return Array.isArray(values) ? values : Array.from(values);
}

function lines(vectors) {
  return vectors.map((vector) => JSON.stringify({ ...vector, values: numbers(vector.values) })).join("\n");
}

function failure(operation, { code, error }, cause = new Error(error)) {
  const number = typeof code === "number" ? ` (code = ${code})` : "";
  return new Error(`${operation}_ERROR${number}: ${error}`, { cause });
}
