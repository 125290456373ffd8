using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "main", worker = .sample),
    (name = "docs", external = (address = "127.0.0.1:8787", http = (injectRequestHeaders = [
      (name = "Headrace-Account", value = "local"),
      (name = "Headrace-Index", value = "docs"),
      (name = "Authorization", value = "Bearer local"),
    ]))),
    (name = "fresh", external = (address = "127.0.0.1:8787", http = (injectRequestHeaders = [
      (name = "Headrace-Account", value = "local"),
      (name = "Headrace-Index", value = "fresh"),
      (name = "Authorization", value = "Bearer local"),
    ]))),
  ],
  sockets = [(name = "http", address = "127.0.0.1:8080", http = (), service = "main")],
);

const sample :Workerd.Worker = (
  modules = [
    (name = "worker.mjs", esModule = embed "worker.mjs"),
    (name = "cases.mjs", esModule = embed "cases.mjs"),
  ],
  compatibilityDate = "2025-09-01",
  bindings = [
    (name = "VECTORIZE", wrapped = (moduleName = "cloudflare-internal:vectorize-api", innerBindings = [
      (name = "fetcher", service = "docs"),
      (name = "indexId", text = "docs"),
      (name = "indexVersion", text = "v2"),
      (name = "useNdJson", json = "true"),
    ])),
    (name = "FRESH", wrapped = (moduleName = "cloudflare-internal:vectorize-api", innerBindings = [
      (name = "fetcher", service = "fresh"),
      (name = "indexId", text = "fresh"),
      (name = "indexVersion", text = "v2"),
      (name = "useNdJson", json = "true"),
    ])),
  ],
);
