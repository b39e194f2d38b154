"""TLS between two buffers: what an end is, and what failures are called."""

import re
import ssl

import pytest

from gopher.config import TlsConfig
from gopher.errors import ConfigError
from gopher.relay.tls import load_context
from gopher.relay.tlssession import TlsSession, failure_of, words_of
from tests.support.certificates import Authority

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


class Server:
    """The other side, and the wire between."""

    def __init__(self, context):
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def take_in(self, client):
        self._incoming.write(client.take())

    def give(self, client, step=1 << 20):
        """Returns what the client makes of it, fed so many bytes at a time."""
        wire, received = self._outgoing.read(), b""
        for begin in range(0, len(wire), step):
            received += client.receive(wire[begin : begin + step])
        return received

    def shake_hands(self, client, step=1 << 20):
        for _ in range(2):
            self.take_in(client)
            try:
                self.tls.do_handshake()
            except ssl.SSLError as error:
                if not isinstance(error, ssl.SSLWantReadError):
                    break
            assert self.give(client, step) == b""


def session(authority, name="localhost", **config):
    return TlsSession(load_context(TlsConfig(**{"ca_path": str(authority.ca)} | config)), name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("step", [1 << 20, 1])
def test_bytes_both_ways_and_an_end_each(authority, version, step):
    client, server = session(authority), Server(authority.server("localhost", version=version))
    server.shake_hands(client, step)
    assert client.established
    client.send(b"request" * 10_000)
    client.end()
    server.take_in(client)
    received = b""
    while part := server.tls.read(1 << 16):
        received += part
    assert received == b"request" * 10_000
    # Its end was heard, and it still hears.
    server.tls.write(b"answer" * 3_000)
    assert server.give(client, step) == b"answer" * 3_000
    assert not client.ended
    server.tls.unwrap()
    assert server.give(client, step) == b""
    assert client.ended
    assert client.error is None


def test_what_came_before_an_error_is_not_lost(authority):
    client, server = session(authority), Server(authority.server("localhost"))
    server.shake_hands(client)
    server.tls.write(b"half of it")
    wire = server._outgoing.read() + b"\x17\x03\x03\x00\x20" + b"x" * 32
    assert client.receive(wire) == b"half of it"
    assert words_of(client.error)
    assert not client.ended


def test_words_name_no_file_of_python(tmp_path):
    (tmp_path / "no.pem").write_text("no PEM")
    with pytest.raises(ssl.SSLError) as caught:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tmp_path / "no.pem")
    assert re.fullmatch(r"[a-z ]+", words_of(caught.value))


@pytest.mark.parametrize(
    ("names", "expired", "failure", "words"),
    [
        (["elsewhere"], False, "certificate_name", "Hostname mismatch, certificate is not valid for 'localhost'"),
        (["localhost"], True, "certificate_expired", "certificate has expired"),
        (None, False, "certificate_untrusted", "unable to get local issuer certificate"),
    ],
)
def test_failures_of_certificates(authority, tmp_path, names, expired, failure, words):
    signer = authority if names else Authority(tmp_path)
    client, server = session(authority), Server(signer.server(*(names or ["localhost"]), expired=expired))
    server.shake_hands(client)
    assert not client.established
    assert (failure_of(client.error), words_of(client.error)) == (failure, words)


def test_address_that_the_certificate_is_not_for(authority):
    client, server = session(authority, "127.0.0.1"), Server(authority.server("localhost", "127.0.0.2"))
    server.shake_hands(client)
    assert failure_of(client.error) == "certificate_name"


def test_insecure_takes_any_certificate(authority):
    client, server = session(authority, ca_path="", insecure=True), Server(authority.server("elsewhere", expired=True))
    server.shake_hands(client)
    assert client.established


def test_without_a_file_the_system_is_asked(authority):
    client, server = session(authority, ca_path=""), Server(authority.server("localhost"))
    server.shake_hands(client)
    assert failure_of(client.error) == "certificate_untrusted"


def test_bytes_that_are_no_tls(authority):
    client = session(authority)
    assert client.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n") == b""
    assert failure_of(client.error) == "handshake"
    # OpenSSL's words for it change.
    assert words_of(client.error) in ("wrong version number", "record layer failure")


# -- files ------------------------------------------------------------------------------------------------------------


def refused(**config):
    with pytest.raises(ConfigError) as caught:
        load_context(TlsConfig(**config))
    assert caught.value.exit_status == 2
    assert caught.value.hint
    return str(caught.value)


def test_files_that_are_not_what_they_should_be(authority, tmp_path):
    empty, missing = tmp_path / "empty.pem", str(tmp_path / "missing.pem")
    empty.write_bytes(b"")
    pair = authority.issue("relay.example")
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(pair.read_text()[pair.read_text().index("-----BEGIN CERTIFICATE") :])
    assert refused(ca_path=missing) == f"--tls-ca {missing}: No such file or directory"
    assert refused(ca_path=str(tmp_path)) == f"--tls-ca {tmp_path}: Is a directory"
    assert refused(ca_path=str(empty)).startswith(f"--tls-ca {empty}: no certificates in PEM form: ")
    assert refused(cert_path=missing) == f"--tls-cert {missing}: No such file or directory"
    assert refused(cert_path=str(pair), key_path=missing) == f"--tls-key {missing}: No such file or directory"
    for config in (
        {"cert_path": str(empty)},
        {"cert_path": str(certificate)},
        {"cert_path": str(certificate), "key_path": str(authority.issue("another.example"))},
    ):
        assert refused(**config).startswith(f"--tls-cert {config['cert_path']}: no certificate with its private key: ")


def test_encrypted_key_is_not_asked_a_password_for(authority, tmp_path):
    from cryptography.hazmat.primitives import serialization

    pair = authority.issue("relay.example").read_bytes()
    key = serialization.load_pem_private_key(pair, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    path = tmp_path / "key.pem"
    path.write_bytes(key)
    assert refused(cert_path=str(authority.issue("relay.example")), key_path=str(path)) == (
        f"--tls-key {path}: the private key is encrypted"
    )
