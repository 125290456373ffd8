/** Options of a binding, in `dev.options` of its configuration. What is left out comes from the environment. */
export interface HeadraceBindingOptions {
  /** The index. Read from `index_name` beside the binding's name as well. */
  index_name?: string;
  /** Where Headrace is: `HEADRACE_URL`, else http://127.0.0.1:8787. Its token is only read from `HEADRACE_TOKEN`. */
  url?: string;
  /** `HEADRACE_ACCOUNT`, else `CLOUDFLARE_ACCOUNT_ID`, else `local`. */
  account?: string;
  /** Whether a write returns when it can be found: `HEADRACE_WAIT`, else false. */
  wait?: boolean;
}

/** What miniflare loads. */
export declare const plugins: { readonly headrace: object };
