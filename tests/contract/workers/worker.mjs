// A Worker as its author deploys it: nothing in it knows of Headrace.
import { runCases } from "./cases.mjs";

export default {
  async fetch(request, env) {
    return Response.json(await runCases({ docs: env.VECTORIZE, fresh: env.FRESH }));
  },
};
