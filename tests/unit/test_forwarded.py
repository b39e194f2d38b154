"""X-Forwarded-For and Forwarded, with the examples of RFC 7239."""

import pytest

from gopher.http.messages import MessageLimits, MessageParser
from gopher.relay.forwarded import append_forwarded


def appended(which, client, *lines):
    """The lines of these headers after a client was appended."""
    fields = "".join(f"{line}\r\n" for line in lines)
    [received, *_] = MessageParser("request", limits=MessageLimits()).feed(
        f"GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()
    )
    append_forwarded(received.head.headers, which, client)
    return [f"{name.decode()}: {value.decode()}" for name, value in received.head.headers][1:]


@pytest.mark.parametrize(
    ("client", "node"),
    [
        # Section 6.
        ("192.0.2.43", "192.0.2.43"),
        ("2001:db8:cafe::17", '"[2001:db8:cafe::17]"'),
        ("", "unknown"),
    ],
)
def test_node(client, node):
    assert appended("forwarded", client) == [f"Forwarded: for={node}"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # Section 7.1: both are the same list.
        (
            ["Forwarded: for=192.0.2.43,for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com"],
            ["Forwarded: for=192.0.2.43,for=198.51.100.17;by=203.0.113.60;proto=http;host=example.com, for=192.0.2.1"],
        ),
        (
            ["Forwarded: for=192.0.2.43", 'forwarded: for="[2001:db8:cafe::17]", for=unknown'],
            ["Forwarded: for=192.0.2.43", 'forwarded: for="[2001:db8:cafe::17]", for=unknown, for=192.0.2.1'],
        ),
        (["Forwarded:"], ["Forwarded:for=192.0.2.1"]),
        (["Forwarded: for=_hidden, for=_SEVKISEK"], ["Forwarded: for=_hidden, for=_SEVKISEK, for=192.0.2.1"]),
    ],
)
def test_appended_to_the_last_line(before, after):
    # Names keep their case and their spacing.
    assert [line.replace(": ", ":", 1) for line in appended("forwarded", "192.0.2.1", *before)] == [
        line.replace(": ", ":", 1) for line in after
    ]


def test_x_forwarded_for_is_one_line_in_the_end():
    lines = ("X-Forwarded-For: 198.51.100.1", "X-Other: 1", "X-Forwarded-For: 198.51.100.2")
    assert appended("x-forwarded-for", "192.0.2.1", *lines) == [
        "X-Forwarded-For: 198.51.100.1, 198.51.100.2, 192.0.2.1",
        "X-Other: 1",
    ]
    # No brackets here, and no word for the unknown.
    assert appended("x-forwarded-for", "2001:db8::1") == ["X-Forwarded-For: 2001:db8::1"]
    assert appended("x-forwarded-for", "") == []


def test_both():
    assert appended("both", "2001:db8::1") == ["X-Forwarded-For: 2001:db8::1", 'Forwarded: for="[2001:db8::1]"']
    assert appended("both", "") == ["Forwarded: for=unknown"]
