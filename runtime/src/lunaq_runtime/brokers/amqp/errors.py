"""What aiormq raises, as BrokerError; the only place that knows its exceptions.

`translated` goes round every await on a connection or channel.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aiormq import exceptions as amqp

from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator

_PREFIXES = ("ACCESS_REFUSED - ", "NOT_FOUND - ", "PRECONDITION_FAILED - ", "RESOURCE_LOCKED - ")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise everything that goes wrong inside as BrokerError; `what` names the operation and its object."""
    try:
        yield
    except BrokerError:
        raise
    except asyncio.CancelledError as error:
        # aiormq cancels what waits on a dying channel. That is no cancellation of ours.
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise BrokerError("connection", f"{what}: the connection was lost") from error
    except Exception as error:
        raise broker_error(what, error) from error


def heed_cancellation() -> None:
    """End the running task if that was asked for: aiormq, closing a channel, may have swallowed it.

    For loops that go on after a BrokerError; whoever cancelled one and waits for its end would wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def broker_error(what: str, error: BaseException) -> BrokerError:  # noqa: C901, PLR0911 - one case per meaning
    """Translate one exception; texts of a broker name objects and arguments, never credentials."""
    if (tls := _tls_error(error)) is not None:
        return BrokerError("connection", f"{what}: {_tls_text(tls)}")
    match error:
        case BrokerError():
            return error
        case amqp.ChannelNotFoundEntity():
            return BrokerError("queue_not_found", f"{what}: {_text(error)}")
        case amqp.ChannelAccessRefused() | amqp.ChannelLockedResource():
            return BrokerError("access_refused", f"{what}: {_text(error)}")
        case amqp.ChannelPreconditionFailed():
            text = _text(error)
            reason = "immutable_arguments" if "inequivalent arg" in text else "invalid_arguments"
            return BrokerError(reason, f"{what}: {text}")
        case amqp.ConnectionNotAllowed():
            return BrokerError("access_refused", f"{what}: {_text(error)}")
        case amqp.InvalidFrameError() if "got <Connection.Close" in _text(error):
            # aiormq expected Connection.OpenOk and drops the 530 with its text that it got instead.
            text = "the virtual host does not exist, or the user has no permission on it"
            return BrokerError("access_refused", f"{what}: {text}")
        case amqp.ProbableAuthenticationError() | amqp.AuthenticationError():
            return BrokerError("access_refused", f"{what}: the broker refused the credentials")
        case TimeoutError():
            return BrokerError("timeout", f"{what}: no answer in time")
        case amqp.AMQPError() | OSError() | RuntimeError() | EOFError():
            return BrokerError("connection", f"{what}: {_text(error) or type(error).__name__}")
        case _:
            return BrokerError("connection", f"{what}: {type(error).__name__}")


_ALERTS = {
    "CERTIFICATE_REQUIRED": "the broker requires a client certificate: give one",
    "HANDSHAKE_FAILURE": "the broker refused the handshake, perhaps for want of a client certificate",
    "UNKNOWN_CA": "the broker does not trust the client certificate's authority",
    "CERTIFICATE_EXPIRED": "the broker finds the client certificate expired",
    "BAD_CERTIFICATE": "the broker refuses the client certificate",
    "CERTIFICATE_UNKNOWN": "the broker refuses the client certificate",
    "WRONG_VERSION_NUMBER": "the port does not speak TLS: use amqp:// there, or the port of amqps",
}
"""What the other side's alert means, by a part of OpenSSL's reason."""


def _tls_error(error: BaseException) -> ssl.SSLError | None:
    """Find the failure of TLS that aiormq may have wrapped."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__
    return found


def _tls_text(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is not accepted: {error.verify_message}"
    reason = error.reason or type(error).__name__
    for part, text in _ALERTS.items():
        if part in reason:
            return f"TLS failed: {text} ({reason})"
    return f"TLS failed: {reason}"


def _text(error: BaseException) -> str:
    text = " ".join(str(arg) for arg in error.args if isinstance(arg, str | int))
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    return text
