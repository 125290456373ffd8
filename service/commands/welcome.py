"""What is printed once everything is ready: where it listens, what to paste, what to try first."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from service.commands.listeners import Address
from service.version import VERSION
from storage.settings import Settings

PACKAGE_PATH = "/npm/headrace.tgz"
"""Where the npm package is. `service.npm.tarball` would bring a server along with its path."""
ACCOUNT = "local"
"""The account of the examples and of the indexes made at start; any other name works too."""
TOKEN = "local"  # noqa: S105 (what clients that insist on a token are told to send when none is needed)


def welcome(settings: Settings, address: Address, *, teach: bool, needs_token: bool) -> str:
    """The lines for a service that listens at `address`. A configured token is never printed."""
    url = address.url()
    where = url if address.is_loopback else f"{address.host} port {address.port}, from this machine {url}"
    first = f"Headrace {VERSION} listens on {where} (data in {settings.data}, limits {settings.profile})\n"
    return first + (_lesson(url, needs_token=needs_token) if teach else "")


def worker_welcome(settings: Settings) -> str:
    """The line for a worker that runs by itself."""
    return f"Headrace {VERSION} applies mutations of {settings.data}\n"


def _program() -> str:
    """How the reader starts this program: the wrapper of the source tree is not on the path."""
    wrapper = Path(sys.prefix) / "bin" / "headrace"
    if shutil.which("headrace") or not wrapper.exists():
        return "headrace"
    return os.path.relpath(wrapper)


def _lesson(url: str, *, needs_token: bool) -> str:
    token = "$HEADRACE_TOKEN" if needs_token else TOKEN
    authorization = ' -H "Authorization: Bearer $CLOUDFLARE_API_TOKEN"' if needs_token else ""
    program = _program()
    return f"""
Paste this where your client runs (wrangler, the Cloudflare SDKs, curl):

  export CLOUDFLARE_API_BASE_URL={url}/client/v4
  export CLOUDFLARE_BASE_URL={url}/client/v4
  export CLOUDFLARE_ACCOUNT_ID={ACCOUNT}
  export CLOUDFLARE_API_TOKEN={token}
  export WRANGLER_SEND_METRICS=false

Then try a first request, which makes an index:

  curl "$CLOUDFLARE_BASE_URL/accounts/$CLOUDFLARE_ACCOUNT_ID/vectorize/v2/indexes"{authorization} \\
    -H "Content-Type: application/json" \\
    -d '{{"name": "docs", "config": {{"dimensions": 768, "metric": "cosine"}}}}'

In the folder of a Worker, this puts the server behind its `env.VECTORIZE`:

  npm i -D {url}{PACKAGE_PATH}
  npx headrace wrangler dev

`{program} demo` shows a search over real words. Ctrl-C stops everything.

"""
