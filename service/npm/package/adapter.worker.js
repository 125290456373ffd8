// Runs in workerd between a Vectorize binding and Headrace. The server speaks the binding's own protocol, so requests
// go through as they are; what is added is the address, the token, and words for what can be wrong with either.

const DENIED = new Set([401, 403]);

export default {
  async fetch(request, env) {
    const operation = new URL(request.url).pathname;
    const headers = new Headers(request.headers);
    if (env.token) headers.set("Authorization", `Bearer ${env.token}`);
    const body = request.method === "GET" ? undefined : await request.arrayBuffer();
    let response;
    try {
      response = await fetch(`${env.address}${operation}${env.search}`, {
        method: request.method,
        headers,
        body,
      });
    } catch {
      return refusal(503, `Headrace does not answer at ${env.url}; start it with: headrace dev`);
    }
    if (response.status === 200) return response;
    const text = await response.text();
    let found;
    try {
      found = JSON.parse(text);
    } catch {
      found = {};
    }
    if (typeof found.error !== "string") {
      return refusal(
        502,
        `what answers at ${env.url} is not Headrace, or an older one (status ${response.status})`,
      );
    }
    if (DENIED.has(response.status)) {
      found.error += `; Headrace at ${env.url} refuses the token: set HEADRACE_TOKEN to one it knows`;
    }
    if (response.status === 404 || response.status === 410)
      found.error += ` (Headrace at ${env.url}, account ${env.account})`;
    return Response.json(found, { status: response.status });
  },
};

// Without a code, because no number of the live service means this.
function refusal(status, error) {
  return Response.json({ error }, { status });
}
