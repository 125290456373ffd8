"""TLS in a service process: who connects, what is refused, and another certificate without a restart."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import structlog

from service.commands.failure import CommandFailed
from service.commands.listeners import Address, resolve_address
from service.commands.rest import Api
from service.commands.up import _check_files
from service.process import run
from service.tls import Certificate, CertificateInvalid, fingerprint
from storage.settings import Settings
from tests.certificates import make_certificate, make_client, needs_openssl
from tests.conftest import until

pytestmark = needs_openssl


@asynccontextmanager
async def secured(settings: Settings, certificate: Path, key: Path, **more: str) -> AsyncIterator[str]:
    """A service process in this one, behind the certificate; its URL."""
    settings = replace(settings, tls_certificate=str(certificate), tls_key=str(key), **more)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    stop, ready = asyncio.Event(), asyncio.Event()
    running = asyncio.create_task(run(settings, sockets=[listener], ready=ready.set, stop=stop))
    await asyncio.wait([running, asyncio.create_task(ready.wait())], return_when=asyncio.FIRST_COMPLETED)
    try:
        host, port = listener.getsockname()
        yield Address(family=socket.AF_INET, host=host, port=port, is_secure=True).url()
    finally:
        stop.set()
        await running


def trusting(certificate: Path, own: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificate))
    if own is not None:
        context.load_cert_chain(*own)
    return context


async def gets_in(url: str, context: ssl.SSLContext) -> bool:
    """Whether a new connection is answered."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"{url}/livez", ssl=context) as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False


async def hang_up(event: str) -> None:
    with structlog.testing.capture_logs() as logged:
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: any(line["event"] == event for line in logged))


async def shown(url: str) -> str:
    """The certificate that a new connection is shown."""
    host, port = url.removeprefix("https://").split(":")
    return await asyncio.to_thread(ssl.get_server_certificate, (host, int(port)))


async def test_clients_that_trust_the_certificate_get_in_and_others_do_not(settings, tmp_path):
    certificate, key = make_certificate(tmp_path)
    async with secured(settings, certificate, key) as url, aiohttp.ClientSession() as session:
        assert url.startswith("https://")
        async with session.get(f"{url}/livez", ssl=trusting(certificate)) as answer:
            assert answer.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{url}/livez")
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{url}/livez".replace("https", "http"))
        old = trusting(certificate)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        async with session.get(f"{url}/livez", ssl=old) as answer:
            assert answer.status == 200


async def test_our_own_commands_know_the_server_by_its_fingerprint(settings, tmp_path):
    certificate, key = make_certificate(tmp_path)
    other, _ = make_certificate(tmp_path, "other")
    async with secured(settings, certificate, key) as url:
        async with Api(url, "local", "", fingerprint=fingerprint(str(certificate))) as api:
            assert await api.get("") == []
        async with Api(url, "local", "", fingerprint=fingerprint(str(other))) as api:
            with pytest.raises(CommandFailed, match="Fingerprint"):
                await api.get("")


async def test_a_hangup_shows_new_connections_the_new_certificate_and_keeps_the_old_ones_open(settings, tmp_path):
    certificate, key = make_certificate(tmp_path)
    before = certificate.read_text()
    async with secured(settings, certificate, key) as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/livez", ssl=trusting(certificate)) as answer:
            assert answer.status == 200
        assert await shown(url) == before
        fresh, fresh_key = make_certificate(tmp_path, "fresh")
        fresh.replace(certificate)
        fresh_key.replace(key)

        with structlog.testing.capture_logs() as logged:
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: any(line["event"] == "certificate.loaded" for line in logged))

        assert await shown(url) == certificate.read_text() != before
        async with session.get(f"{url}/livez", ssl=trusting(certificate)) as answer:
            assert answer.status == 200


@pytest.mark.parametrize("fault", ["gone", "no PEM", "another key"])
async def test_a_hangup_with_files_that_do_not_fit_changes_nothing(settings, tmp_path, fault):
    certificate, key = make_certificate(tmp_path)
    before = certificate.read_text()
    other, _ = make_certificate(tmp_path, "other")
    async with secured(settings, certificate, key) as url:
        match fault:
            case "gone":
                certificate.unlink()
            case "no PEM":
                certificate.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n")
            case _:
                other.replace(certificate)

        with structlog.testing.capture_logs() as logged:
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: any(line["event"] == "certificate.rejected" for line in logged))

        assert await shown(url) == before


async def test_only_clients_that_an_authority_vouches_for_may_connect(settings, tmp_path):
    certificate, key = make_certificate(tmp_path)
    authority, other = make_certificate(tmp_path, "authority"), make_certificate(tmp_path, "other")
    client, stranger = make_client(tmp_path, authority), make_client(tmp_path, other, "stranger")
    async with secured(settings, certificate, key, tls_client_ca=str(authority[0])) as url:
        for maximum in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            let_in = []
            for own in (client, stranger, (certificate, key), None):
                context = trusting(certificate, own)
                context.maximum_version = maximum
                let_in.append(await gets_in(url, context))
            assert let_in == [True, False, False, False]


async def test_a_hangup_changes_whose_clients_may_connect_and_the_old_ones_resume_nothing(settings, tmp_path):
    certificate, key = make_certificate(tmp_path)
    first, second = make_certificate(tmp_path, "first"), make_certificate(tmp_path, "second")
    named = tmp_path / "clients.pem"
    named.write_text(first[0].read_text())
    old = trusting(certificate, make_client(tmp_path, first, "old"))
    # A client of this version keeps what it needs to resume its session without showing its certificate again.
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    new = trusting(certificate, make_client(tmp_path, second, "new"))
    async with secured(settings, certificate, key, tls_client_ca=str(named)) as url, aiohttp.ClientSession() as session:
        host, port = url.removeprefix("https://").split(":")
        kept = await asyncio.to_thread(session_of, (host, int(port)), old)
        await asyncio.to_thread(session_of, (host, int(port)), old, kept)
        assert (await gets_in(url, old), await gets_in(url, new)) == (True, False)
        async with session.get(f"{url}/livez", ssl=old) as answer:
            assert answer.status == 200

        named.write_text(second[0].read_text())
        await hang_up("certificate.loaded")
        assert (await gets_in(url, old), await gets_in(url, new)) == (False, True)
        with pytest.raises(OSError, match=r"(?i)alert|reset|ssl"):
            await asyncio.to_thread(session_of, (host, int(port)), old, kept)
        async with session.get(f"{url}/livez", ssl=old) as answer:
            assert answer.status == 200, "a connection that is open stays"

        named.write_text("nobody")
        await hang_up("certificate.rejected")
        assert (await gets_in(url, old), await gets_in(url, new)) == (False, True)

        named.write_text(first[0].read_text() + second[0].read_text())
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGHUP)
        await hang_up("certificate.loaded")
        assert (await gets_in(url, old), await gets_in(url, new)) == (True, True)


def session_of(
    address: tuple[str, int], context: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLSession | None:
    """Connect, perhaps by an old session, be answered, and return the session."""
    with (
        socket.create_connection(address, timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost", session=session) as wire,
    ):
        wire.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert wire.recv(100).startswith(b"HTTP/1.1 200")
        assert wire.session_reused is (session is not None)
        return wire.session


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(tmp_path):
    import subprocess

    certificate, key = make_certificate(tmp_path)
    locked = tmp_path / "locked.key"
    command = ["openssl", "ec", "-in", str(key), "-aes256", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    with pytest.raises(CertificateInvalid, match="without one"):
        Certificate(str(certificate), str(locked))


def test_what_cannot_be_used_is_said_before_anything_starts(tmp_path):
    certificate, key = make_certificate(tmp_path)
    nowhere = str(tmp_path / "none" / "audit")

    with pytest.raises(CommandFailed, match="No such file"):
        _check_files(Settings(tls_certificate=str(tmp_path / "none.crt")))
    with pytest.raises(CommandFailed, match="tls_certificate is not"):
        _check_files(Settings(tls_key=str(key)))
    with pytest.raises(CommandFailed, match="audit file"):
        _check_files(Settings(audit_file=nowhere))
    both = Settings(tls_certificate=str(certificate), tls_key=str(key))
    _check_files(both)
    with pytest.raises(CommandFailed, match="tls_client_ca is set and"):
        _check_files(Settings(tls_client_ca=str(certificate)))
    with pytest.raises(CommandFailed, match="authorities of clients"):
        _check_files(replace(both, tls_client_ca=str(key)))
    with pytest.raises(CommandFailed, match="create_indexes"):
        _check_files(replace(both, tls_client_ca=str(certificate), create_indexes="docs:32:cosine"))
    _check_files(replace(both, tls_client_ca=str(certificate)))


def test_a_certificate_may_bring_its_key_in_the_same_file(tmp_path):
    certificate, key = make_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_text(key.read_text() + certificate.read_text())

    assert Certificate(str(both), "").context
    assert fingerprint(str(both)) == fingerprint(str(certificate))


def test_the_address_is_told_with_its_scheme():
    assert resolve_address(Settings(tls_certificate="x")).url() == "https://127.0.0.1:8787"
    assert resolve_address(Settings()).url() == "http://127.0.0.1:8787"
