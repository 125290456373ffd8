// The binding's methods without a binding, and what they say when Headrace is not there as it should be.
import assert from "node:assert/strict";
import http from "node:http";
import { test } from "node:test";
import { VectorizeIndex } from "../../../service/npm/package/client.mjs";

async function answering(status, body, ask) {
  const requests = [];
  const server = http.createServer(async (request, response) => {
    let text = "";
    for await (const chunk of request) text += chunk;
    requests.push([request.method, request.url, text, request.headers.authorization]);
    response.writeHead(status, { "Content-Type": "application/json" }).end(body);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    const url = `http://127.0.0.1:${server.address().port}`;
    await ask(new VectorizeIndex("docs", { url, token: "secret", account: "acc", wait: true }), url);
  } finally {
    server.close();
  }
  return requests;
}

test("every method sends what the binding sends, with token, account and wait", async () => {
  const requests = await answering(200, "{}", async (index) => {
    await index.describe();
    await index.query(new Float32Array([0.5]), { topK: 1 });
    await index.queryById("a", { returnMetadata: false });
    await index.insert([
      { id: "a", values: new Float32Array([1, 2]) },
      { id: "b", values: [3] },
    ]);
    await index.upsert([{ id: "a", values: [1], metadata: { kind: "x" } }]);
    await index.getByIds(["a"]);
    await index.deleteByIds(["a"]);
  });

  const path = (operation) => `/accounts/acc/_binding/docs/${operation}?wait=true`;
  assert.deepEqual(requests, [
    ["GET", path("info"), "", "Bearer secret"],
    ["POST", path("query"), '{"topK":1,"vector":[0.5]}', "Bearer secret"],
    ["POST", path("query"), '{"returnMetadata":false,"vectorId":"a"}', "Bearer secret"],
    ["POST", path("insert"), '{"id":"a","values":[1,2]}\n{"id":"b","values":[3]}', "Bearer secret"],
    ["POST", path("upsert"), '{"id":"a","values":[1],"metadata":{"kind":"x"}}', "Bearer secret"],
    ["POST", path("getByIds"), '{"ids":["a"]}', "Bearer secret"],
    ["POST", path("deleteByIds"), '{"ids":["a"]}', "Bearer secret"],
  ]);
});

test("a refusal has the binding's words", async () => {
  await answering(400, '{"code": 40012, "error": "too long"}', async (index) => {
    await assert.rejects(index.insert([]), { message: "VECTOR_INSERT_ERROR (code = 40012): too long" });
  });
});

test("a refused token is named", async () => {
  await answering(401, '{"code": 10000, "error": "Authentication error"}', async (index) => {
    await assert.rejects(
      index.describe(),
      /INDEX_GET_ERROR \(code = 10000\): .*refuses the token: set HEADRACE_TOKEN/,
    );
  });
});

test("a stranger is named", async () => {
  await answering(404, "<html>", async (index, url) => {
    await assert.rejects(index.getByIds(["a"]), {
      message: new RegExp(`what answers at ${url} is not Headrace`),
    });
  });
});

test("a server that is down is named, with how to start it", async () => {
  const index = new VectorizeIndex("docs", { url: "http://127.0.0.1:1" });
  await assert.rejects(index.query([1]), {
    message:
      "VECTOR_QUERY_ERROR: Headrace does not answer at http://127.0.0.1:1; start it with: headrace dev",
  });
});
