"""The npm package as npm wants it: the same bytes whenever it is asked for, so that lock files hold.

The version of the package is the server's, so that a package that was installed from a server fits it.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from functools import cache
from pathlib import Path

import orjson
from aiohttp import web

from service.version import VERSION

PATH = "/npm/headrace.tgz"
SOURCE = Path(__file__).parent / "package"
MANIFEST = "package.json"
COMMANDS = frozenset({"cli.mjs"})
"""What is run as a program, and marked so."""
UNCHANGING_TIME = 499_162_500
"""The time npm itself gives every file: ZIP, which some registries unpack to, knows none before 1980."""


async def headrace_tgz(_: web.Request) -> web.Response:
    """The package. It holds nothing that is not public, so nobody is asked for a token."""
    headers = {"Content-Disposition": f'attachment; filename="headrace-{VERSION}.tgz"', "Cache-Control": "no-cache"}
    return web.Response(body=tarball(), content_type="application/gzip", headers=headers)


@cache
def tarball() -> bytes:
    """The package, packed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(path.name for path in SOURCE.iterdir() if path.is_file()):
            content = (SOURCE / name).read_bytes()
            if name == MANIFEST:
                content = orjson.dumps(orjson.loads(content) | {"version": VERSION}, option=orjson.OPT_INDENT_2)
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            entry.mtime = UNCHANGING_TIME
            entry.mode = 0o755 if name in COMMANDS else 0o644
            archive.addfile(entry, io.BytesIO(content))
    # Level and time are written out: their defaults are not the same everywhere.
    return gzip.compress(packed.getvalue(), compresslevel=9, mtime=0)
