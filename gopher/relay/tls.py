"""A relay's upstream over TLS: a socket pair for each connection, whose far end stands for the upstream's socket.

So nothing changes for tunnels and channels, and connections without TLS pay nothing. A `Bridge` dials the upstream,
sends a PROXY protocol header before the handshake if there is one (as HAProxy and nginx do), shakes hands, and from
then on moves bytes between the pair's near end and the wire, through a `TlsSession`. All bridges are served from the
same epoll descriptor as the channels of the framed relay.

What a socket pair cannot say passes by calls: that the upstream is there or why it is not, that it broke, that it ended
without saying so, and from the other side that a connection is to be reset.

Bounded: a bridge keeps about one read for each side, and does not read what the other side does not take.
"""

from __future__ import annotations

import errno
import select
import socket
import ssl
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from gopher.errors import ConfigError
from gopher.relay import lastword
from gopher.relay.channel import Channel, ChannelPump
from gopher.relay.tlssession import TlsSession, failure_of, words_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gopher.config import RelayConfig, TlsConfig
    from gopher.upstreams.tcp import Address

__all__ = ["Bridge", "FarEnd", "Tls", "TlsChannel", "load_context"]

QUEUE_BYTES: Final = 65_536
"""Past this, what feeds a side is not read."""
LAST_BYTES_S: Final = 5.0
"""How long the wire may take what is left when the other side has closed."""
TOLD_LIMIT: Final = 16
"""Different failures that are told; OpenSSL's words may hold what a server sent."""

_HINTS: Final = {
    "certificate_name": "--tls-name NAME says what it is for",
    "certificate_untrusted": "--tls-ca FILE says whom to trust",
}


def load_context(config: TlsConfig) -> ssl.SSLContext:
    """The settings of all connections. Reads the files.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    # Not create_default_context: what that refuses differs between versions of Python.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif config.ca_path:
        _check_readable("--tls-ca", config.ca_path)
        # Whom the user names is trusted, also if it is a server itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(config.ca_path)
        except ssl.SSLError as error:
            raise ConfigError(
                f"--tls-ca {config.ca_path}: no certificates in PEM form: {words_of(error)}",
                hint="it begins with -----BEGIN CERTIFICATE-----; openssl x509 converts other forms",
            ) from error
    else:
        context.load_default_certs()
    if config.cert_path:
        _load_certificate(context, config)
    return context


def _load_certificate(context: ssl.SSLContext, config: TlsConfig) -> None:
    key = f"--tls-key {config.key_path}" if config.key_path else f"--tls-cert {config.cert_path}"

    def refuse() -> str:
        raise ConfigError(
            f"{key}: the private key is encrypted", hint="openssl pkey -in KEY -out FILE takes the password off"
        )

    _check_readable("--tls-cert", config.cert_path)
    if config.key_path:
        _check_readable("--tls-key", config.key_path)
    try:
        context.load_cert_chain(config.cert_path, config.key_path or None, refuse)
    except ssl.SSLError as error:
        raise ConfigError(
            f"--tls-cert {config.cert_path}: no certificate with its private key: {words_of(error)}",
            hint="both in PEM form in that file, or the key in another one: --tls-key FILE",
        ) from error


def _check_readable(option: str, path: str) -> None:
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option} {path}: {error.strerror}", hint="give a PEM file that gopher's user may read"
        ) from error


class Side(Protocol):
    """What holds the far end of a bridge."""

    def opened(self) -> None:
        """The upstream is there: what is written to the far end now reaches it."""

    def failed(self, failure: str) -> None:
        """It is not; see `lastword.sentence`. The bridge is closed."""

    def broken(self) -> None:
        """The end that follows is no clean one."""


class FarEnd(socket.socket):
    """Stands where the upstream's socket would."""

    bridge: Bridge


class Tls:
    """The first upstream of a relay, while it is spoken to over TLS, and the connections.

    Args:
        config: what was asked for.
        addresses: of the upstream, tried in turn.
        context: see `load_context`; None if there is no TLS.
        tell: prints one line.
        accept: for the pump that the bridges share with the framed relay; see `ChannelPump`.

    Attributes:
        addresses: of the upstream, the one that answered last first.
        context: the settings of new connections.
    """

    def __init__(
        self,
        config: RelayConfig,
        addresses: list[Address],
        context: ssl.SSLContext | None,
        tell: Callable[[str], None],
        accept: Callable[[], None] = lambda: None,
    ) -> None:
        self.addresses: list[Address] = []
        self.context: ssl.SSLContext | None = None
        self.pump = ChannelPump(accept)
        self._tell = tell
        self._told: set[str] = set()
        self.bridges: set[Bridge] = set()
        # Each has one time-out for all, so it is in the order of its deadlines.
        self._connecting: deque[tuple[float, Bridge, Channel]] = deque()
        self._closing: deque[tuple[float, Bridge]] = deque()
        self.used = False
        """Whether new connections to the upstream are to be bridges."""
        self.reload(config, addresses, context)

    def reload(self, config: RelayConfig, addresses: list[Address], context: ssl.SSLContext | None) -> None:
        """Take on other settings for connections that are dialled from now on. Those that are open keep what they have.

        Args: as for the class.
        """
        self.used = context is not None
        if context is None:
            # A bridge that is still dialling goes on with what it began with.
            return
        self.context = context
        upstream = config.upstreams[0]
        self._upstream = upstream.name
        # The scope of an address is ours, not the server's; and a dot at the end means something to resolvers only.
        self._name = config.tls.server_name or upstream.host.partition("%")[0].rstrip(".")
        self._timeout_s = config.connect_timeout_s
        self._told.clear()
        if {address.sockaddr for address in addresses} != {address.sockaddr for address in self.addresses}:
            self.addresses = list(addresses)

    def begin_session(self) -> TlsSession:
        """For one connection."""
        assert self.context is not None
        return TlsSession(self.context, self._name)

    def prefer_another(self) -> None:
        """The first address has failed."""
        self.addresses.append(self.addresses.pop(0))

    def dialled(self, bridge: Bridge, wire: Channel) -> None:
        """The upstream now has the connect time-out to accept and shake hands."""
        while self._connecting and not self._connecting[0][1].connecting:
            self._connecting.popleft()
        self._connecting.append((self.pump.now_s + self._timeout_s, bridge, wire))

    def linger(self, bridge: Bridge) -> None:
        """The wire has a while to take what is left."""
        self._closing.append((self.pump.now_s + LAST_BYTES_S, bridge))

    def explain(self, failure: str, words: str) -> None:
        """Tell what no answer to a client can say, once: whoever reads this is not who sent the request."""
        if words not in self._told and len(self._told) < TOLD_LIMIT:
            self._told.add(words)
            hint = f" ({_HINTS[failure]})" if failure in _HINTS else ""
            self._tell(f"upstream {self._upstream}: TLS: {words}{hint}")

    def tick(self, now_s: float) -> None:
        """Apply the time-outs that are due."""
        while self._connecting and self._connecting[0][0] <= now_s:
            _, bridge, wire = self._connecting.popleft()
            bridge.timed_out(wire)
        while self._closing and self._closing[0][0] <= now_s:
            self._closing.popleft()[1].abort()

    def abort(self) -> None:
        """Cut what is still open."""
        for bridge in list(self.bridges):
            bridge.abort()


class Bridge:
    """One connection to the upstream; begins with `start`.

    Args:
        tls: what it belongs to.

    Attributes:
        far_end: non-blocking; belongs to the caller, who has to set `side` before `start`.
        connecting: whether the upstream is not there yet.

    Raises:
        OSError: there are no descriptors left.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        near, far = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        self.far_end = FarEnd(fileno=far.detach())
        self.far_end.bridge = self
        self.side: Side
        self.connecting = True
        self._near = near
        self._pair: Channel | None = None
        """Of the near end, once the upstream is there."""
        self._wire: Channel | None = None
        self._session: TlsSession
        self._announcement = b""
        self._addresses_left = 0
        self._half_closed = False
        """Whether the far end has ended, and the upstream been told."""
        self._far_end_closed = False
        self._ended = False
        """Whether the upstream has."""
        self._answered = False
        """Whether anything came after the upstream was told of the far end's end."""
        tls.bridges.add(self)

    # -- begin -----------------------------------------------------------------------------------------------------

    @property
    def dialling(self) -> bool:
        """Whether it is on its way to the upstream, which has a time-out of its own."""
        return self.connecting and self._wire is not None

    def start(self, announcement: bytes) -> None:
        """Dial the upstream. `announcement`: what goes before the handshake."""
        self._announcement = announcement
        self._addresses_left = len(self._tls.addresses)
        self._dial("unreachable")

    def _dial(self, failure: str) -> None:
        """Dial addresses in turn until one does not fail at once. `failure`: of the last one."""
        tls = self._tls
        while self._addresses_left:
            self._addresses_left -= 1
            try:
                wire = Channel.dial(tls.pump, tls.addresses[0], self._wire_readable, self._wire_drained)
            except OSError as error:
                failure = lastword.failure_of(error.errno or errno.EHOSTUNREACH)
                tls.prefer_another()
                continue
            self._wire = wire
            self._session = tls.begin_session()
            wire.send(self._announcement + self._session.take())
            tls.dialled(self, wire)
            return
        self._close(hard=True)
        self.side.failed(failure)

    def _attempt_failed(self, failure: str) -> None:
        assert self._wire is not None
        # Not hard: an alert that says why may be on its way.
        self._wire.close(hard=False)
        if self._addresses_left:
            self._tls.prefer_another()
        self._dial(failure)

    def timed_out(self, wire: Channel) -> None:
        """The time for this attempt is over."""
        if wire is self._wire and self.connecting and not wire.closed:
            self._attempt_failed("connect_timeout" if wire.connecting else "handshake_timeout")

    def _handshake_failed(self, words: str) -> None:
        error = self._session.error
        failure = "handshake" if error is None else failure_of(error)
        self._tls.explain(failure, words if error is None else words_of(error))
        self._attempt_failed(failure)

    # -- bytes -----------------------------------------------------------------------------------------------------

    def _wire_readable(self) -> None:
        wire = self._wire
        assert wire is not None
        if wire.connecting:
            self._attempt_failed(wire.failure)
            return
        reset = False
        try:
            data = wire.recv()
        except OSError:
            data, reset = b"", True
        if data is None:
            return
        session = self._session
        if data:
            received = session.receive(data)
            # The handshake, or an alert that says why there is none.
            wire.send(session.take())
            if session.established:
                self._take(received)
            elif session.error is not None:
                self._handshake_failed("")
        elif not session.established:
            self._handshake_failed("the server ended the connection within the handshake")
        elif self._ended and wire.reading:
            # It may read on. If not, the wire is reported again.
            wire.read(False)
        elif self._half_closed and not (self._ended or self._answered or reset):
            # Told that the client has gone, some servers (nginx) go without a word: there was nothing more to say.
            self._end_pair()
        else:
            # What came may be cut; or nobody is there any more to send to.
            self._break()

    def _take(self, received: bytes) -> None:
        """Pass on what has come from the upstream."""
        if self.connecting:
            self.connecting = False
            self._pair = Channel(self._tls.pump, self._near, self._pair_readable, self._pair_drained)
            self.side.opened()
        pair, wire, session = self._pair, self._wire, self._session
        assert pair is not None
        assert wire is not None
        if pair.closed:
            return
        if received:
            self._answered = self._half_closed
            pair.send(received)
        if session.error is not None:
            self._tls.explain("", words_of(session.error))
            self._break()
        elif session.ended:
            self._end_pair()
        elif pair.queued > QUEUE_BYTES:
            wire.read(False)

    def _end_pair(self) -> None:
        """The upstream has ended."""
        assert self._pair is not None
        self._ended = True
        self._pair.finish()

    def _pair_readable(self) -> None:
        pair, wire, session = self._pair, self._wire, self._session
        assert pair is not None
        assert wire is not None
        try:
            data = pair.recv()
        except OSError:
            # It was closed before it had read everything.
            self.abort()
            return
        if data is None:
            return
        if data:
            session.send(data)
        elif not self._half_closed:
            self._half_closed = True
            pair.read(False)
            session.end()
        else:
            self._end()
            return
        wire.send(session.take())
        if session.error is not None:
            self._break()
        elif wire.queued > QUEUE_BYTES:
            pair.read(False)

    def _wire_drained(self) -> None:
        if self._far_end_closed:
            self._close(hard=False)
        elif self._pair is not None and not self._half_closed:
            self._pair.read(True)

    def _pair_drained(self) -> None:
        assert self._pair is not None
        assert self._wire is not None
        if self._wire.closed:
            self._close(hard=False)
        elif not self._ended:
            self._wire.read(True)

    # -- end -------------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The far end is closed, and everything has been read from it."""
        assert self._pair is not None
        assert self._wire is not None
        if self._wire.closed or not self._wire.queued:
            self._close(hard=False)
            return
        self._far_end_closed = True
        self._pair.close(hard=False)
        self._tls.linger(self)

    def _break(self) -> None:
        """The upstream has broken; what it had sent passes first."""
        assert self._pair is not None
        assert self._wire is not None
        self.side.broken()
        self._wire.close(hard=True)
        if not self._pair.queued:
            self._close(hard=True)

    def abort(self) -> None:
        """Reset the upstream's connection, and lose what waits. The far end has to be closed by its owner."""
        self._close(hard=True)

    def _close(self, *, hard: bool) -> None:
        self.connecting = False
        if self._wire is not None:
            self._wire.close(hard=hard)
        if self._pair is not None:
            self._pair.close(hard=False)
        else:
            self._near.close()
        self._tls.bridges.discard(self)


class TlsChannel(Channel):
    """The far end of a bridge, for the framed relay; see `Channel`. Begins with `start`.

    Raises:
        OSError: there are no descriptors left.
    """

    __slots__ = ("_bridge", "_failure", "_started")

    def __init__(self, tls: Tls, on_readable: Callable[[], None], on_drained: Callable[[], None]) -> None:
        bridge = Bridge(tls)
        # A socket pair can be written to at once, which means nothing here.
        super().__init__(tls.pump, bridge.far_end, on_readable, on_drained, connecting=True, watched=False)
        self._bridge = bridge
        self._failure = ""
        self._started = False
        bridge.side = self

    def start(self, announcement: bytes) -> str:
        """Dial the upstream. Returns: why that failed at once, and the channel is closed; else nothing.

        What fails later shows when the channel is read.
        """
        self._bridge.start(announcement)
        self._started = True
        if self._failure:
            self.close(hard=True)
        return self._failure

    def opened(self) -> None:
        """See `Side`."""
        if not self.closed:
            self.ready(select.EPOLLOUT)

    def failed(self, failure: str) -> None:
        """See `Side`."""
        self._failure = failure
        if self._started and not self.closed:
            self.ready(select.EPOLLERR)

    def broken(self) -> None:
        """See `Side`."""
        self.error = errno.ECONNRESET

    @property
    def failure(self) -> str:
        """See `Channel.failure`."""
        return self._failure or super().failure

    def close(self, *, hard: bool) -> None:
        """See `Channel.close`."""
        if hard or self.connecting:
            self._bridge.abort()
        super().close(hard=hard)
