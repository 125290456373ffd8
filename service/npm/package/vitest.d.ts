/** What a test gets from `inject("headrace")`, to be passed to `new VectorizeIndex(name, ...)` or `resetIndex`. */
export interface HeadraceAddress {
  url: string;
  token: string;
  account: string;
  wait: boolean;
}

declare module "vitest" {
  interface ProvidedContext {
    headrace: HeadraceAddress;
  }
}

/** Starts Headrace for a test run, with temporary data, and puts it behind the Vectorize bindings of the tests. */
export default function setup(project?: unknown): Promise<() => Promise<void>>;
