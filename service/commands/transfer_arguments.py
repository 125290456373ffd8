"""What `headrace import` and `headrace export` take on the command line and from the environment."""

from __future__ import annotations

import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.commands.transfer import Transfer

USUAL_URL = "http://127.0.0.1:8787"
LIVE_URL = "https://api.cloudflare.com/client/v4"
API_VARIABLE = "CLOUDFLARE_API_BASE_URL"
TOKEN_VARIABLE = "CLOUDFLARE_API_TOKEN"  # noqa: S105 - the name of a variable


def add_import(parser: ArgumentParser) -> None:
    """The arguments of `import`."""
    parser.add_argument("other", metavar="SOURCE", help="vectorize://ACCOUNT/INDEX or a file of NDJSON")
    _add_both(parser)
    parser.add_argument("--metric", default="", help="for a new index from a file (default: cosine)")
    parser.add_argument(
        "--metadata-index",
        action="append",
        default=[],
        metavar="NAME:TYPE",
        help="for an index from a file: a property to filter on; string, number or boolean; more than once",
    )
    parser.set_defaults(run=_import)


def add_export(parser: ArgumentParser) -> None:
    """The arguments of `export`."""
    parser.add_argument("other", metavar="TARGET", help="vectorize://ACCOUNT/INDEX or a file of NDJSON")
    _add_both(parser)
    parser.set_defaults(run=_export, metric="", metadata_index=[])


def _add_both(parser: ArgumentParser) -> None:
    parser.add_argument("--index", default="", help="the index here (default: the name it has there)")
    parser.add_argument("--url", default="", help=f"the server here (default: HEADRACE_URL, else {USUAL_URL})")
    parser.add_argument("--account", default="", help="the account here (default: HEADRACE_ACCOUNT, else local)")
    parser.add_argument("--token", default=None, help="the token of the server here (default: HEADRACE_TOKEN)")
    parser.add_argument("--api", default="", metavar="URL", help=f"the other API (default: {API_VARIABLE}, else live)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="where it is kept how far it has come")


def _import(given: Namespace) -> int:
    from service.commands.transfer import run_import

    return run_import(_asked(given))


def _export(given: Namespace) -> int:
    from service.commands.transfer import run_export

    return run_export(_asked(given))


def _asked(given: Namespace) -> Transfer:
    from service.commands.transfer import Server, Transfer

    environ = os.environ
    return Transfer(
        other=given.other,
        index=given.index,
        here=Server(
            url=given.url or environ.get("HEADRACE_URL") or USUAL_URL,
            account=given.account or environ.get("HEADRACE_ACCOUNT") or "local",
            token=given.token if given.token is not None else environ.get("HEADRACE_TOKEN", ""),
            set_with="--token or HEADRACE_TOKEN",
        ),
        # Only from the environment: arguments can be read by everybody on the machine.
        live=Server(
            url=given.api or environ.get(API_VARIABLE) or LIVE_URL,
            account="",
            token=environ.get(TOKEN_VARIABLE, ""),
            set_with=TOKEN_VARIABLE,
        ),
        resume=given.resume,
        metric=given.metric,
        metadata_indexes=tuple(given.metadata_index),
    )
