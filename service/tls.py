"""TLS in the service process: the certificate, whose clients may connect, and others without a restart."""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path

import structlog

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
HANDSHAKE_TIMEOUT_S = 10
"""How long a client may take to shake hands."""

log = structlog.get_logger()


class CertificateInvalid(Exception):
    """A certificate or key that cannot be used; the message says which file and why."""


class Certificate:
    """A certificate with its key, as new connections are shown it, and who vouches for clients, where they need one."""

    def __init__(self, certificate: str, key: str, client_ca: str = "") -> None:
        """Read the files. Without `key` it is in the file of the certificate. Raises CertificateInvalid."""
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self.context = self._read()

    def reload(self) -> bool:
        """Have in `context` what the files have now. Files that do not fit change nothing, and are logged."""
        try:
            # Always a new one: from a context that is in use no authority can be taken, and it resumes old sessions.
            self.context = self._read()
        except CertificateInvalid as error:
            log.error("certificate.rejected", reason=str(error))
            return False
        log.info("certificate.loaded", file=self._certificate)
        return True

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._certificate, self._key or None, password=_no_password)
        except (OSError, ValueError) as error:
            both = f"{self._certificate} and {self._key}" if self._key else self._certificate
            raise CertificateInvalid(f"{both} cannot be used as certificate and key: {_reason(error)}") from error
        if self._client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                text = f"{self._client_ca} cannot be used as the authorities of clients: {_reason(error)}"
                raise CertificateInvalid(text) from error
        return context


class ForListeners(ssl.SSLContext):
    """What a listener is given for as long as it listens: each connection gets the context that there is by then."""

    _certificate: Certificate

    @classmethod
    def of(cls, certificate: Certificate) -> ForListeners:
        """The context of a certificate, whenever it was read."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._certificate = certificate
        return context

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Begin TLS on a new connection."""
        hostname = server_hostname.decode() if isinstance(server_hostname, bytes) else server_hostname
        return self._certificate.context.wrap_bio(incoming, outgoing, server_side, hostname, session)


def fingerprint(certificate: str) -> bytes:
    """The SHA-256 of the first certificate of a file: by it, our own commands know our own server."""
    found = PEM.search(Path(certificate).read_text(encoding="ascii", errors="replace"))
    if found is None:
        raise CertificateInvalid(f"{certificate} has no certificate in PEM form")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(found[0])).digest()


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "not PEM, or not a pair"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _no_password() -> str:
    # Without this, OpenSSL would ask at the terminal.
    raise ValueError("the key has a password, and nobody is there to type it; store it without one")
