export interface HeadraceOptions {
  /** `HEADRACE_URL`, else http://127.0.0.1:8787. */
  url?: string;
  /** `HEADRACE_TOKEN`, else none. */
  token?: string;
  /** `HEADRACE_ACCOUNT`, else `CLOUDFLARE_ACCOUNT_ID`, else `local`. */
  account?: string;
  /** Whether a write returns when it can be found: `HEADRACE_WAIT`, else false. */
  wait?: boolean;
}

export type Values = number[] | Float32Array | Float64Array;
export type Metadata = Record<string, unknown>;

export interface Vector {
  id: string;
  values: Values;
  namespace?: string;
  metadata?: Metadata;
}

export interface StoredVector {
  id: string;
  values: number[];
  namespace?: string;
  metadata?: Metadata;
}

export interface QueryOptions {
  topK?: number;
  namespace?: string;
  returnValues?: boolean;
  returnMetadata?: boolean | "all" | "indexed" | "none";
  filter?: Record<string, unknown>;
  /** Only Headrace: the share of the true nearest that is wanted; 1 is exact. */
  recall?: number;
  /** Only Headrace: matches to skip. */
  offset?: number;
}

export interface Match {
  id: string;
  score: number;
  values?: number[];
  namespace?: string;
  metadata?: Metadata;
}

export interface Matches {
  count: number;
  matches: Match[];
}

export interface Mutation {
  mutationId: string;
}

export interface IndexInfo {
  dimensions: number;
  vectorCount: number;
  processedUpToDatetime?: string;
  processedUpToMutation?: string;
}

/** The methods of a Worker's Vectorize binding. */
export declare class VectorizeIndex {
  constructor(index: string, options?: HeadraceOptions);
  describe(): Promise<IndexInfo>;
  query(vector: Values, options?: QueryOptions): Promise<Matches>;
  queryById(vectorId: string, options?: QueryOptions): Promise<Matches>;
  insert(vectors: Vector[]): Promise<Mutation>;
  upsert(vectors: Vector[]): Promise<Mutation>;
  getByIds(ids: string[]): Promise<StoredVector[]>;
  deleteByIds(ids: string[]): Promise<Mutation>;
}

/** Empty an index; its config and metadata indexes stay. One that does not exist is left so. */
export declare function resetIndex(index: string, options?: HeadraceOptions): Promise<void>;
