"""A first conversation with a secured broker, to learn why it does not let us in.

The clients try again and again instead, and kafka-python 3.0.12 often reads the end of a connection before the refusal
that came ahead of it.
"""

import socket
import struct

from kafka.net.sasl import get_sasl_mechanism

from contracts.settings import KafkaSettings
from streamer.security import password

_SASL_HANDSHAKE, _API_VERSIONS, _SASL_AUTHENTICATE = 17, 18, 36
_MAX_REPLY_BYTES = 1 << 20


class LoginRefusedError(Exception):
    """The broker does not take this mechanism, user or password; the message is its reason."""


def log_in(connection: socket.socket, settings: KafkaSettings) -> None:
    """Show who we are, and wait for the broker's word.

    :raises LoginRefusedError: it says no.
    :raises OSError: it says nothing that is Kafka's (SSLError: it does not take our certificate).
    :raises PasswordFileError: the password is in a file that cannot be read.
    """
    if settings.sasl_mechanism is None:
        # TLS 1.3 refuses a client's certificate only after the handshake.
        _ask(connection, _API_VERSIONS, 0, b"")
        return
    reply = _ask(connection, _SASL_HANDSHAKE, 1, _text(settings.sasl_mechanism))
    if reply.number("h") != 0:
        enabled = [reply.text() for _ in range(reply.number("i"))]
        raise LoginRefusedError(f"it takes {', '.join(sorted(enabled)) or 'no mechanism'}")
    mechanism = get_sasl_mechanism(settings.sasl_mechanism)(
        sasl_mechanism=settings.sasl_mechanism,
        sasl_plain_username=settings.sasl_username,
        sasl_plain_password=password(settings),
    )
    while not mechanism.is_done():
        token = mechanism.auth_bytes()
        reply = _ask(connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token)
        code, why = reply.number("h"), reply.text()
        if code != 0:
            raise LoginRefusedError(why or f"error {code}")
        try:
            mechanism.receive(reply.take(reply.number("i")))
        except ValueError as error:
            raise LoginRefusedError(f"its answer does not fit the password: {error}") from error


class _Reply:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def take(self, n_bytes: int) -> bytes:
        taken, self._data = self._data[:n_bytes], self._data[n_bytes:]
        if len(taken) != max(n_bytes, 0):
            raise OSError("a reply that breaks off")
        return taken

    def number(self, kind: str) -> int:
        return int(struct.unpack(f">{kind}", self.take(struct.calcsize(f">{kind}")))[0])

    def text(self) -> str:
        return self.take(max(self.number("h"), 0)).decode(errors="replace")


def _ask(connection: socket.socket, api: int, version: int, body: bytes) -> _Reply:
    request = struct.pack(">hhi", api, version, 0) + _text("anabranch") + body
    connection.sendall(struct.pack(">i", len(request)) + request)
    n_bytes = struct.unpack(">i", _read(connection, 4))[0]
    if not 4 <= n_bytes <= _MAX_REPLY_BYTES:
        raise OSError("a reply that is not Kafka's")
    return _Reply(_read(connection, n_bytes)[4:])  # behind its number, 0


def _read(connection: socket.socket, n_bytes: int) -> bytes:
    data = b""
    while len(data) < n_bytes:
        part = connection.recv(n_bytes - len(data))
        if not part:
            raise OSError("the connection ended")
        data += part
    return data


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack(">h", len(encoded)) + encoded
