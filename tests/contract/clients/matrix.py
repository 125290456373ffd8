"""Which client is run at which version and in which way: the short list of CI, and the rest."""

from __future__ import annotations

from tests.contract.clients.command_line import walk
from tests.contract.clients.installing import Project
from tests.contract.clients.ways import CURRENT, MINIFLARE_4, Way, proxied, typed, vite, vitest, wrangler

OLDEST = Project("wrangler-4.36", ("wrangler@4.36.0",))
OLDER = Project("wrangler-4.100", ("wrangler@4.100.0",))
VITE = Project("vite", ("vite@8.3.8", "@cloudflare/vite-plugin@1.64.0", "wrangler@4.164.0"))
VITEST = Project("vitest", ("vitest@5.1.1", "@cloudflare/vitest-plugin@1.5.0"))
VITEST_OLD = Project("vitest-old", ("vitest@4.1.12", "@cloudflare/vitest-pool-workers@0.23.0"))
SDK = Project("sdk", ("cloudflare@7.3.0",))
TYPES = Project("types", ("typescript@7.0.2", "@cloudflare/workers-types@5.20261117.1", "vitest@5.1.1"))
MASTRA = Project("mastra", ("@mastra/vectorize@0.11.17",))

WAYS = (
    Way(
        name="npx headrace wrangler dev",
        project=CURRENT,
        package="wrangler",
        run=lambda stage: wrangler(stage, ours=True),
    ),
    Way(
        name="npx headrace node (getPlatformProxy)",
        project=CURRENT,
        package="wrangler",
        run=lambda stage: stage.printed(stage.command("headrace", "node", "platform.mjs")),
    ),
    Way(
        name="plugin in the configuration",
        project=CURRENT,
        package="wrangler",
        run=lambda stage: wrangler(stage, "-c", "plugin.jsonc"),
    ),
    Way(
        name="RPC Worker",
        project=CURRENT,
        package="wrangler",
        run=lambda stage: wrangler(stage, "-c", "services.jsonc", "-c", "index.jsonc"),
    ),
    Way(name="remoteProxyConnectionString", project=CURRENT, package="miniflare", run=proxied),
    Way(
        name="capnp file",
        project=CURRENT,
        package="workerd",
        run=lambda stage: stage.served(stage.command("workerd", "serve", "--experimental", "workerd.capnp")),
    ),
    Way(name="remoteProxyConnectionString", project=MINIFLARE_4, package="miniflare", run=proxied),
    Way(
        name="npx headrace node (Miniflare)",
        project=MINIFLARE_4,
        package="miniflare",
        run=lambda stage: stage.printed(stage.command("headrace", "node", "miniflare.mjs")),
    ),
    Way(
        name="globalSetup headrace/vitest",
        project=VITEST,
        package="@cloudflare/vitest-plugin",
        run=lambda stage: vitest(stage, "@cloudflare/vitest-plugin"),
    ),
    Way(
        name="base URL",
        project=SDK,
        package="cloudflare",
        run=lambda stage: stage.printed(["node", "sdk.mjs"]),
    ),
    Way(
        name="base URL in the environment",
        project=MASTRA,
        package="@mastra/vectorize",
        run=lambda stage: stage.printed(["node", "mastra.mjs"]),
    ),
    Way(name="types of the npm package", project=TYPES, package="typescript", run=typed),
    Way(name="wrangler vectorize", project=CURRENT, package="wrangler", run=walk),
)
"""What CI runs."""

MORE_WAYS = (
    Way(
        name="npx headrace wrangler dev",
        project=OLDER,
        package="wrangler",
        run=lambda stage: wrangler(stage, ours=True),
    ),
    Way(
        name="plugin in the configuration",
        project=OLDER,
        package="wrangler",
        run=lambda stage: wrangler(stage, "-c", "plugin.jsonc"),
    ),
    Way(
        name="plugin in the configuration",
        project=OLDEST,
        package="wrangler",
        run=lambda stage: wrangler(stage, "-c", "plugin.jsonc"),
    ),
    Way(
        name="capnp file",
        project=MINIFLARE_4,
        package="workerd",
        run=lambda stage: stage.served(stage.command("workerd", "serve", "--experimental", "workerd.capnp")),
    ),
    Way(
        name="npx headrace node (Miniflare)",
        project=CURRENT,
        package="miniflare",
        run=lambda stage: stage.printed(stage.command("headrace", "node", "miniflare.mjs")),
    ),
    Way(name="npx headrace vite dev", project=VITE, package="@cloudflare/vite-plugin", run=vite),
    Way(
        name="globalSetup headrace/vitest",
        project=VITEST_OLD,
        package="@cloudflare/vitest-pool-workers",
        run=lambda stage: vitest(stage, "@cloudflare/vitest-pool-workers"),
    ),
    Way(
        name="wrangler vectorize",
        project=OLDEST,
        package="wrangler",
        run=walk,
    ),
)
"""What `scripts/clients` runs as well."""
