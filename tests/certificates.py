"""Certificates for tests, made when they are needed; OpenSSL's program makes them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")


def make_certificate(folder: Path, name: str = "server") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and localhost, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    what = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    who = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    where = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *what.split(), *who, *where], check=True, capture_output=True)
    return certificate, key


def make_client(folder: Path, authority: tuple[Path, Path], name: str = "client") -> tuple[Path, Path]:
    """A certificate that an authority vouches for, as `make_certificate` made one, and its key."""
    certificate, key, request = (folder / f"{name}.{kind}" for kind in ("crt", "key", "csr"))
    asked = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj"]
    signed = ["x509", "-req", "-days", "2", "-in", str(request), "-set_serial", "7"]
    by = ["-CA", str(authority[0]), "-CAkey", str(authority[1])]
    for command in (
        [*asked, f"/CN={name}", "-keyout", str(key), "-out", str(request)],
        [*signed, *by, "-out", str(certificate)],
    ):
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return certificate, key
