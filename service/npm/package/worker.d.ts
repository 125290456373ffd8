import type { WorkerEntrypoint } from "cloudflare:workers";
import type {
  IndexInfo,
  Match,
  Matches,
  Mutation,
  QueryOptions,
  StoredVector,
  Values,
  Vector,
} from "./client.js";

export interface HeadraceEnv {
  HEADRACE_URL: string;
  HEADRACE_INDEX?: string;
  HEADRACE_ACCOUNT?: string;
  HEADRACE_TOKEN?: string;
  HEADRACE_WAIT?: string | boolean;
}

/** Bind it as a service with `entrypoint: "Vectorize"`, or as the default export of a Worker. */
export declare class Vectorize extends WorkerEntrypoint<HeadraceEnv> {
  describe(): Promise<IndexInfo>;
  query(vector: Values, options?: QueryOptions): Promise<Matches>;
  queryById(vectorId: string, options?: QueryOptions): Promise<Matches>;
  insert(vectors: Vector[]): Promise<Mutation>;
  upsert(vectors: Vector[]): Promise<Mutation>;
  getByIds(ids: string[]): Promise<StoredVector[]>;
  deleteByIds(ids: string[]): Promise<Mutation>;
}
export default Vectorize;
export type { IndexInfo, Match, Matches, Mutation, QueryOptions, StoredVector, Values, Vector };
