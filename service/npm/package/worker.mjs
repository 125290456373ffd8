// A Worker that stands for an index, to be bound as a service: `env.VECTORIZE` over RPC, in dev and in production.
//
// Its variables are HEADRACE_URL, HEADRACE_ACCOUNT, HEADRACE_INDEX and HEADRACE_WAIT, its secret HEADRACE_TOKEN. Where
// the binding gives `props`, `index` and `account` there win, so one Worker can stand for many indexes.

import { WorkerEntrypoint } from "cloudflare:workers";
import { VectorizeIndex } from "./client.mjs";

export class Vectorize extends WorkerEntrypoint {
  #index;

  constructor(ctx, env) {
    super(ctx, env);
    const { index = env.HEADRACE_INDEX, account = env.HEADRACE_ACCOUNT } = ctx.props ?? {};
    this.#index = new VectorizeIndex(index, {
      url: env.HEADRACE_URL,
      token: env.HEADRACE_TOKEN,
      account,
      wait: String(env.HEADRACE_WAIT) === "true",
    });
  }

  describe() {
    return this.#index.describe();
  }

  query(vector, options) {
    return this.#index.query(vector, options);
  }

  queryById(vectorId, options) {
    return this.#index.queryById(vectorId, options);
  }

  insert(vectors) {
    return this.#index.insert(vectors);
  }

  upsert(vectors) {
    return this.#index.upsert(vectors);
  }

  getByIds(ids) {
    return this.#index.getByIds(ids);
  }

  deleteByIds(ids) {
    return this.#index.deleteByIds(ids);
  }

  // Without it the Worker cannot be bound as a service by older versions of wrangler.
  fetch() {
    return new Response("This Worker is called over RPC: bind it as a service.\n", { status: 404 });
  }
}

export default Vectorize;
