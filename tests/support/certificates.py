"""A certificate authority of the tests, what it signs, and servers' TLS settings made of that."""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import trustme


class Authority:
    """Files of an authority in a directory.

    Args:
        directory: for the files.

    Attributes:
        ca: PEM file of what to trust.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = self._write("ca.pem", self._authority.cert_pem)

    def _write(self, name: str, blob: trustme.Blob) -> Path:
        path = self._directory / name
        blob.write_to_path(path)
        return path

    def issue(self, *names: str, expired: bool = False) -> Path:
        """A PEM file with a key and its certificate for host names and addresses."""
        ended = datetime.datetime(2020, 2, 1, tzinfo=datetime.timezone.utc) if expired else None
        begun = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc) if expired else None
        leaf = self._authority.issue_cert(*names, not_before=begun, not_after=ended)
        return self._write(f"{'expired-' if expired else ''}{names[0]}.pem", leaf.private_key_and_cert_chain_pem)

    def server(self, *names: str, expired: bool = False, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """Settings of a server with such a certificate, for this version of TLS only if it is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.issue(*names, expired=expired))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if version is not None:
            context.minimum_version = context.maximum_version = version
        return context
