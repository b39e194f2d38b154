"""One TLS connection to a server: bytes of the wire and of the application go in, and come out. Sans-I/O.

The standard library's OpenSSL does the work between two buffers in memory. Here is decided what its failures are
called, and what an end is: TLS says by a message of its own (close_notify) that a direction is complete, so an end of
the wire without it may be a cut. Each direction ends by itself (RFC 8446 section 6.1). TLS 1.2 wanted the peer to
answer with its own end at once (RFC 5246 section 7.2.1); servers on OpenSSL and Go send first what they have to say,
and nothing else would let a client say that it has finished.

Sessions are not resumed. That would save 0.4 ms of the 0.7 that a handshake costs; but a relay keeps its connections as
long as its clients do, so handshakes are few, and each one verifies the certificate that the server has now.
"""

from __future__ import annotations

import re
import ssl
from typing import Final

__all__ = ["TlsSession", "failure_of", "words_of"]

READ_BYTES: Final = 65_536

# X509_V_ERR_... of OpenSSL, with the reasons of `gopher.observe.relaying.FAILURES`.
_CERTIFICATE_FAILURES: Final = {
    9: "certificate_expired",  # not yet valid
    10: "certificate_expired",
    62: "certificate_name",  # host name
    64: "certificate_name",  # IP address
}

_SOURCE: Final = re.compile(r"^\[\w+\] | \(_ssl\.c:\d+\)$")


def failure_of(error: ssl.SSLError) -> str:
    """The reason that stands for a failed handshake."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATE_FAILURES.get(error.verify_code, "certificate_untrusted")
    return "handshake"


def words_of(error: ssl.SSLError) -> str:
    """What OpenSSL says, in its words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message).rstrip(".")
    # Where there is no reason Python's text names a file of its own sources around the words.
    return (error.reason or _SOURCE.sub("", str(error))).lower().replace("_", " ")


class TlsSession:
    """A client's side of one connection; the first message waits to be taken at once.

    Args:
        context: the settings of all connections.
        name: of the server: to ask for, and what its certificate must be for. Addresses are not asked for
            (RFC 6066 section 3).
    """

    def __init__(self, context: ssl.SSLContext, name: str) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self.established = False
        """Whether the handshake is complete."""
        self.ended = False
        """Whether the server has said that it sends no more."""
        self.error: ssl.SSLError | None = None
        """What broke it: it is of no more use."""
        self._shake_hands()

    def receive(self, data: bytes) -> bytes:
        """Take in bytes of the wire. Returns: the application's bytes among them, those before an end or an error."""
        self._incoming.write(data)
        if not self.established and self.error is None:
            self._shake_hands()
        received = []
        try:
            while self.established and not self.ended and self.error is None:
                part = self._ssl.read(READ_BYTES)
                if not part:
                    self.ended = True
                received.append(part)
        except ssl.SSLWantReadError:
            pass  # that was all that came
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.error = error
        return b"".join(received)

    def send(self, data: bytes) -> None:
        """Take in bytes of the application."""
        try:
            while data and self.error is None:
                data = data[self._ssl.write(data) :]
        except ssl.SSLError as error:
            self.error = error

    def end(self) -> None:
        """The application sends no more; it goes on receiving."""
        try:
            self._ssl.unwrap()
        except ssl.SSLWantReadError:
            # It has said so, and looked whether the server has, too.
            pass
        except ssl.SSLError as error:
            self.error = error

    def take(self) -> bytes:
        """What has to go to the wire now; often nothing."""
        return self._outgoing.read()

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
            self.established = True
        except ssl.SSLWantReadError:
            pass  # it is the server's turn
        except ssl.SSLError as error:
            self.error = error
