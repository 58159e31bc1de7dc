"""Why no connection comes about: a look of our own at the listener, after a client has given up.

The client libraries try again and say in the end only that nobody answered; that a certificate was not
trusted, or that the protocols differ, is lost on the way. A TLS handshake and one Kafka request
(``SaslHandshake``: every broker answers it before it knows who asks) tell these causes apart; then the
user and the password are tried. Only what the listener itself shows counts; anything else may pass, and
is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct

from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaError, SaslAuthenticationFailed

from stream_app.addresses import Address, addresses
from stream_app.errors import AccessError, BrokerUnavailableError, StreamAppError
from stream_app.kafka.connection import single_connection_options, tls_context
from stream_app.settings import Kafka, Settings

TIMEOUT_S = 3.0
"""Bound on each step."""
LONGEST_ANSWER = 65_536
UNSUPPORTED_MECHANISM, ILLEGAL_STATE = 33, 34
"""Kafka's error codes: not this mechanism; not a listener with users."""
ANOTHER_NAME = (62, 64)
"""OpenSSL's verify codes of a certificate for another host name, or IP address."""


def cause(settings: Settings, error: Exception) -> StreamAppError:
    """What to tell a person when a client failed with ``error``: AccessError when broker and client do
    not accept each other, otherwise BrokerUnavailableError, which says how each listener is silent. Takes
    seconds, and runs an event loop of its own: from a coroutine call it in a thread."""
    listeners = addresses(settings.kafka.broker)
    silent = []
    for address in listeners:
        try:
            problem = _problem(settings, address)
        except OSError as reason:
            silent.append(f"{_silence(reason)} at {address}" if len(listeners) > 1 else _silence(reason))
        else:
            if problem is not None:
                return AccessError(problem)
    if len(silent) < len(listeners):
        return BrokerUnavailableError(
            f"the broker at {settings.kafka.broker} answers, but does not get done with us in time "
            f"({type(error).__name__}): see to its load and to the network, and whether the addresses that "
            "it advertises (advertised.listeners) can be reached from here"
        )
    return BrokerUnavailableError(
        f"no Kafka broker answers at {settings.kafka.broker} ({', '.join(silent)}): start one "
        "(`stream-app broker`), correct kafka.broker, or set STREAM_APP_BROKER=host:port"
    )


def _silence(reason: OSError) -> str:
    """In words, without a colon: what follows one is what to do."""
    if isinstance(reason, socket.gaierror):
        return "the name does not resolve"
    if isinstance(reason, ConnectionRefusedError):
        return "connection refused"
    if isinstance(reason, TimeoutError):
        return f"no connection within {TIMEOUT_S:.0f} s"
    return reason.strerror or str(reason)


def wrong_password(kafka: Kafka) -> str:
    """For a client whose user name or password was refused."""
    return (
        f"the broker at {kafka.broker} refuses the user {kafka.sasl_username!r} ({kafka.sasl_mechanism}): "
        "correct kafka.sasl_username, its password or kafka.sasl_mechanism"
    )


def _problem(settings: Settings, address: Address) -> str | None:
    """What is wrong for certain between us and this listener, and what to do; None if nothing is. Raises
    OSError when nobody is there, or nobody who speaks with us."""
    kafka = settings.kafka
    plain = socket.create_connection(address, TIMEOUT_S)
    with contextlib.ExitStack() as opened:
        connection = opened.enter_context(plain)
        try:
            if kafka.uses_tls:
                wrapped = tls_context(kafka).wrap_socket(plain, server_hostname=address.host)
                connection = opened.enter_context(wrapped)
            error_code, mechanisms = _sasl_handshake(connection, kafka.sasl_mechanism)
        except ssl.SSLCertVerificationError as error:
            return _distrust(kafka, address, error)
        except ssl.SSLError as error:
            if "ALERT" in (error.reason or ""):
                return _alert(kafka, address, error.reason)
            return _other_protocol(kafka, address)
        except TimeoutError:
            raise OSError(f"connected, but no answer within {TIMEOUT_S:.0f} s") from None
        except (OSError, struct.error):
            return _other_protocol(kafka, address)
    if problem := _users(kafka, address, error_code, mechanisms):
        return problem
    if kafka.uses_sasl and asyncio.run(_is_refused(settings, *address)):
        return wrong_password(kafka)
    return None


async def _is_refused(settings: Settings, host: str, port: int) -> bool:
    """Whether the broker does not know this user with this password."""
    client_id = f"{settings.kafka.app_id}-diagnosis"
    connection = AIOKafkaConnection(host, port, **single_connection_options(settings, client_id))
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await connection.connect()
    except SaslAuthenticationFailed:
        return True
    except (KafkaError, OSError):
        return False
    finally:
        await _close(connection)
    return False


async def _close(connection: AIOKafkaConnection) -> None:
    """aiokafka begins to close a connection that fails, and waits for nothing. TLS closes once the other
    side has answered: our event loop would often end before, and leave the socket open."""
    if connection._protocol is not None:  # it was connected
        await asyncio.wait([connection.close()], timeout=TIMEOUT_S)


def _users(kafka: Kafka, address: Address, error_code: int, mechanisms: list[str]) -> str | None:
    protocol = f"kafka.security_protocol = {kafka.security_protocol}"
    if kafka.uses_sasl and error_code == ILLEGAL_STATE:
        instead = "SSL" if kafka.uses_tls else "PLAINTEXT"
        return f"the listener at {address} knows no users, but {protocol}: set {instead}, or another port"
    if kafka.uses_sasl and error_code == UNSUPPORTED_MECHANISM:
        return (
            f"the listener at {address} does not take kafka.sasl_mechanism = {kafka.sasl_mechanism}: "
            f"set one of {', '.join(mechanisms)}"
        )
    if not kafka.uses_sasl and error_code in (0, UNSUPPORTED_MECHANISM):
        instead = "SASL_SSL" if kafka.uses_tls else "SASL_PLAINTEXT"
        return (
            f"the listener at {address} wants a user and a password, but {protocol}: "
            f"set {instead}, kafka.sasl_mechanism ({', '.join(mechanisms)}), kafka.sasl_username "
            "and a password"
        )
    return None


def _distrust(kafka: Kafka, address: Address, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code in ANOTHER_NAME:
        return (
            f"the certificate of the broker at {address} is not for {address.host}: set kafka.broker to a "
            "name that it has (kafka.ssl_check_hostname = false accepts any)"
        )
    trusted = f"kafka.ssl_ca_file = {kafka.ssl_ca_file}" if kafka.ssl_ca_file else "the system"
    return (
        f"the certificate of the broker at {address} is not trusted by {trusted} ({error.verify_message}): "
        "set kafka.ssl_ca_file to the certificate of the authority that issued it"
    )


def _alert(kafka: Kafka, address: Address, reason: str) -> str:
    if kafka.ssl_certificate_file:
        return (
            f"the broker at {address} refuses kafka.ssl_certificate_file = {kafka.ssl_certificate_file} "
            f"({reason}): give one from an authority that the broker trusts"
        )
    return (
        f"the broker at {address} breaks off the TLS handshake ({reason}): it may want a certificate of "
        "ours, kafka.ssl_certificate_file and kafka.ssl_key_file"
    )


def _other_protocol(kafka: Kafka, address: Address) -> str:
    """The listener hung up. If it understands us the other way, with or without TLS, that is why; otherwise
    raises OSError."""
    if kafka.uses_tls and _answers_plainly(address):
        instead = "SASL_PLAINTEXT" if kafka.uses_sasl else "PLAINTEXT"
        what = "does not speak TLS"
    elif not kafka.uses_tls and _speaks_tls(address):
        instead = "SASL_SSL" if kafka.uses_sasl else "SSL"
        what = "speaks TLS only"
    else:
        raise OSError("what listens there hangs up, or is no Kafka")
    return (
        f"the listener at {address} {what}, but kafka.security_protocol = {kafka.security_protocol}: "
        f"set {instead}, or another port"
    )


def _answers_plainly(address: Address) -> bool:
    try:
        with socket.create_connection(address, TIMEOUT_S) as connection:
            _sasl_handshake(connection, "")
    except (OSError, struct.error):
        return False
    return True


def _speaks_tls(address: Address) -> bool:
    curious = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    curious.check_hostname, curious.verify_mode = False, ssl.CERT_NONE  # nothing is sent; whoever it is
    try:
        with socket.create_connection(address, TIMEOUT_S) as connection, curious.wrap_socket(connection):
            return True
    except ssl.SSLError as error:
        return "ALERT" in (error.reason or "")
    except OSError:
        return False


def _sasl_handshake(connection: socket.socket, mechanism: str) -> tuple[int, list[str]]:
    """Kafka's SaslHandshake, version 1: the error code, and the mechanisms that the listener takes.

    Raises OSError or struct.error when what comes back is no such answer.
    """
    name = mechanism.encode()
    body = struct.pack(">hhihh", 17, 1, 0, -1, len(name)) + name  # key, version, correlation, no client id
    connection.sendall(struct.pack(">i", len(body)) + body)
    (length,) = struct.unpack(">i", _read(connection, 4))
    if not 0 < length <= LONGEST_ANSWER:
        raise struct.error("not Kafka's protocol")
    answer = _read(connection, length)
    error_code, count = struct.unpack_from(">hi", answer, 4)
    mechanisms, place = [], 10
    for _ in range(count):
        (size,) = struct.unpack_from(">h", answer, place)
        mechanisms.append(answer[place + 2 : place + 2 + size].decode(errors="replace"))
        place += 2 + size
    return error_code, mechanisms


def _read(connection: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        if not (part := connection.recv(count - len(content))):
            raise ConnectionResetError("closed by the other side")
        content += part
    return content
