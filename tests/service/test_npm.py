"""The npm package that the service serves."""

from __future__ import annotations

import io
import json
import re
import socket
import tarfile
from dataclasses import replace

import pytest

from service.commands.listeners import Address
from service.commands.welcome import welcome
from service.npm.tarball import PATH, SOURCE, tarball
from service.version import VERSION
from storage.settings import Settings
from tests.service.conftest import serving

NAMES = {path.name for path in SOURCE.iterdir()}


def packed() -> dict[str, tuple[int, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(tarball())) as archive:
        return {
            member.name.removeprefix("package/"): (member.mode, archive.extractfile(member).read())  # type: ignore[union-attr]
            for member in archive
        }


async def test_it_is_served_without_a_token_and_always_the_same(settings: Settings) -> None:
    async with serving(replace(settings, token="secret")) as service:
        first, second = await service.get(PATH), await service.get(PATH)

    assert first.status == 200
    assert first.headers["Content-Type"] == "application/gzip"
    assert first.text == second.text == tarball()


def test_dev_says_how_to_install_it() -> None:
    address = Address(family=socket.AF_INET, host="127.0.0.1", port=8787)
    said = welcome(Settings(), address, teach=True, needs_token=False)

    assert f"npm i -D http://127.0.0.1:8787{PATH}\n  npx headrace wrangler dev\n" in said


def test_it_has_the_version_of_the_server_and_every_file() -> None:
    found = packed()

    manifest = json.loads(found["package.json"][1])
    assert manifest["version"] == VERSION
    assert "dependencies" not in manifest
    assert set(found) == NAMES
    assert {name for name, (mode, _) in found.items() if mode & 0o111} == set(manifest["bin"].values())


def test_every_file_that_is_named_is_there() -> None:
    manifest = json.loads((SOURCE / "package.json").read_text())
    exported = re.findall(r'"\./([^"]+\.\w+)"', json.dumps(manifest["exports"]))
    required = [
        name
        for path in SOURCE.iterdir()
        if path.suffix in {".mjs", ".cjs"}
        for name in re.findall(r'(?:from|require\(|import\() ?"\./([^"]+)"', path.read_text())
    ]

    assert set(exported) | set(required) <= NAMES


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.endswith((".mjs", ".cjs", ".js", ".ts"))))
def test_no_line_is_wider_than_python_may_be(name: str) -> None:
    assert [line for line in (SOURCE / name).read_text().splitlines() if len(line) > 120] == []
