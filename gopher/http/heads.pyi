"""The head of an HTTP/1 message, as the bytes it came in: read when asked, remade where edited. Sans-I/O."""

from collections.abc import Iterable, Iterator
from typing import final

__all__ = ["Headers", "RequestHead", "ResponseHead"]

@final
class Headers:
    """The header lines of one head, in order, with their case and spacing.

    Names are found in any case. Values have no white space around them. Lines that an edit does not name keep their
    bytes; a line whose value is replaced keeps its name, its place and its spacing. Every operation is O(bytes of the
    head).
    """

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """(name, value) of each line, as they were when the iteration began."""

    def __len__(self) -> int: ...  # lines
    def __contains__(self, name: bytes, /) -> bool: ...
    def get(self, name: bytes) -> bytes | None: ...  # the first
    def get_all(self, name: bytes) -> list[bytes]: ...
    def long_values(self, shortest: int) -> list[bytes]:
        """Values of at least so many bytes; one that begins with `Bearer `, also without that (RFC 6750)."""

    def set(self, name: bytes, value: bytes) -> None:
        """Replace the value of the first line of this name and remove the others; append a line if there is none.

        Raises:
            LocalProtocolError: the name is no token, or the value has control bytes or white space around it.
        """

    def set_all(self, name: bytes, values: Iterable[bytes]) -> None:
        """Give the lines of this name these values, in order; append lines or remove the last ones as needed.

        Raises:
            LocalProtocolError: as `set`.
        """

    def add(self, name: bytes, value: bytes) -> None:
        """Append a line.

        Raises:
            LocalProtocolError: as `set`.
        """

    def remove(self, name: bytes) -> None: ...  # every line of this name

@final
class RequestHead:
    """A request line and its headers, made by `gopher.http.messages`.

    Setting an attribute makes the request line again. What an edit makes of the message as a whole (its framing, its
    Host) is not checked.

    Raises:
        LocalProtocolError: an attribute is set to what it cannot be.
    """

    @property
    def method(self) -> bytes: ...
    @method.setter
    def method(self, method: bytes) -> None: ...
    @property
    def target(self) -> bytes: ...
    @target.setter
    def target(self, target: bytes) -> None: ...
    @property
    def version(self) -> bytes: ...  # b"1.0" or b"1.1"
    @property
    def headers(self) -> Headers: ...
    @property
    def upgrade(self) -> bool: ...  # it asks to switch protocols by an Upgrade field; for `MessageParser.expect`
    def copy(self) -> RequestHead: ...  # to be edited on its own
    def to_bytes(self) -> bytes:
        """The bytes as they came but for what was changed, with the empty lines that came before the request line."""

@final
class ResponseHead:
    """A status line and its headers; else as `RequestHead`."""

    @property
    def version(self) -> bytes: ...  # b"1.0" or b"1.1"
    @property
    def status(self) -> int: ...  # 100 to 999
    @status.setter
    def status(self, status: int) -> None: ...
    @property
    def reason(self) -> bytes: ...  # b"" if there is none
    @reason.setter
    def reason(self, reason: bytes) -> None: ...
    @property
    def headers(self) -> Headers: ...
    def copy(self) -> ResponseHead: ...  # to be edited on its own
    def to_bytes(self) -> bytes: ...  # the bytes as they came but for what was changed
