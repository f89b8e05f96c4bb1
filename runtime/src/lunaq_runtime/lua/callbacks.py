"""The Python functions that the prelude may call; a handler reaches them only through Lua functions.

Made once per state. None of them does I/O except `Host.log`; none lets a Python exception other than
HandlerError into Lua.
"""

from __future__ import annotations

import functools
import logging
import weakref
from typing import TYPE_CHECKING, Any

from lunaq_runtime import codecs, durations, limits
from lunaq_runtime.lua import bridge, schemas, uuids, zones
from lunaq_runtime.lua.bridge import shown, take, text
from lunaq_runtime.lua.errors import INTERNAL, INVALID, HandlerError
from lunaq_runtime.lua.memory import size_of
from lunaq_runtime.lua.modules import digests, metrics, store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lunaq_runtime.lua.host import Host, Identity, MessageContext
    from lunaq_runtime.lua.memory import MemoryGuard
    from lunaq_runtime.lua.modules.services import Services

logger = logging.getLogger(__name__)


class LogVolume:
    """How much one message may still log."""

    def __init__(self) -> None:
        self.records = self._bytes = self._dropped = 0

    def admits(self, size: int) -> bool:
        """Count a record of about `size` bytes; False where it is to be dropped."""
        self.records += 1
        self._bytes += min(size, limits.MAX_LOG_RECORD)
        if self.records <= limits.MAX_LOG_RECORDS and self._bytes <= limits.MAX_LOG_BYTES:
            return True
        self._dropped += 1
        return False

    def start_anew(self) -> str:
        """Begin with the next message; tell what of this one was dropped, if something was."""
        dropped = self._dropped
        self.records = self._bytes = self._dropped = 0
        if not dropped:
            return ""
        return (
            f"dropped {dropped} log records of this message: at most {limits.MAX_LOG_RECORDS} records and"
            f" {limits.MAX_LOG_BYTES} bytes are written for one"
        )


def _never() -> HandlerError | None:
    """Tell that nothing has to end."""
    return None


class Callbacks:
    """What the callbacks of one Lua state share.

    Lua holds on to the callbacks. A state that is dropped must give its memory back without waiting for the
    garbage collector, so nothing here keeps it alive: `bind` takes weak references, `end` forgets the rest.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_fed",
        "_host",
        "_identity",
        "_interrupted_by",
        "_log_volume",
        "_memory",
        "_monotonic",
        "_services",
        "_to_lua",
        "_wall_clock",
        "dropped",
        "out_of_memory",
        "turn",
        "voided",
    )

    def __init__(
        self,
        host: Host,
        identity: Identity,
        wall_clock: Callable[[], int],
        monotonic: Callable[[], float],
        services: Services,
    ) -> None:
        self._host = host
        self._services = services
        self._wall_clock = wall_clock
        self._monotonic = monotonic
        self.dropped: list[int] = []
        """Tags of requests whose replies nobody waits for any more; `Invocation` empties it."""
        self._identity = identity
        self._fed: list[Any] = []
        self._context: MessageContext | None = None
        self._interrupted_by = _never
        self._log_volume = LogVolume()
        self.turn: Callable[[int], bool] | None = None
        """See `LuaState.start_batch`."""
        self.out_of_memory = False
        self.voided = False
        """Whether this run is to begin anew (prelude/ahead.lua)."""

    def bind(self, to_lua: Callable[[Any], Any], memory: MemoryGuard) -> None:
        """Take `to_lua`, a bound method, and the state's memory guard, once Lua is up."""
        self._to_lua = weakref.WeakMethod(to_lua)
        self._memory = weakref.ref(memory)

    def begin(self, context: MessageContext | None, interrupted: Callable[[], HandlerError | None]) -> None:
        """Start on a message, or on loading; `interrupted` tells why the code must end."""
        self._context = context
        self._interrupted_by = interrupted
        self.out_of_memory = self.voided = False
        self._fed = []  # a run that was ended in the middle of a stream leaves its beginning behind

    def end(self) -> None:
        """Forget the message."""
        if self._log_volume.records and (told := self._log_volume.start_anew()):
            self._host.log("warn", told, self._automatic_fields(), "")
        self._context = None
        self._interrupted_by = _never

    def to_lua(self, value: Any) -> Any:
        """Convert plain data for handing over (`LuaState.to_lua`)."""
        convert = self._to_lua()
        return convert(value) if convert else None

    def _fit(self, need: int = 0) -> bool:
        memory = self._memory()
        return memory is not None and memory.fit(need)

    def _burden(self, value: Any) -> None:
        if memory := self._memory():
            memory.burden(value)

    def exported(self) -> dict[bytes, Any]:
        """Build the table `S.host` of the prelude."""
        functions: dict[str, Callable[..., Any]] = {
            "can": lambda action, resource: self.can(shown(action), shown(resource)),
            "copy_error": lambda error: _copy_error(_own(error)),
            "drop": self.dropped.append,
            "error_call_stack": self._error_call_stack,
            "error_details": lambda error: self.to_lua(_own(error).detail_values),
            "error_kind": lambda error: _own(error).kind_value.encode(),
            "error_message": lambda error: _bytes(_own(error).text),
            "error_retryable": lambda error: _own(error).is_retryable,
            "error_stack": lambda error: _bytes(stack_text(_own(error))),
            "error_text": lambda error: _bytes(": ".join((*_own(error).contexts, _own(error).text))),
            "feed": self._feed,
            "format_duration": lambda nanoseconds: durations.format_duration(nanoseconds).encode(),
            "json_decode": self._json_decode,
            "json_encode": self._json_encode,
            "json_validate": self._json_validate,
            "log": self._log,
            "make_error": self._make_error,
            "message_header": self._message_header,
            "message_headers": lambda: self.to_lua(self._message().headers or {}),
            "message_id": lambda: _bytes(self._message().message_id),
            "monotonic": lambda: int(self._monotonic() * durations.SECOND),
            "now": self._wall_clock,
            "parse_duration": _parse_duration,
            "wrap_error": _wrap_error,
            "zone_abbreviation": lambda name, seconds: _bytes(zones.abbreviation(shown(name), seconds)),
            "zone_known": lambda name: zones.known(shown(name)),
            "zone_offset": lambda name, seconds: zones.offset(shown(name), seconds),
            **uuids.functions(self._answer),
            **store.functions(self, self._services.stores),
            **digests.functions(self),
            **metrics.functions(self, self._services.metrics, self._identity.consumer_id),
        }
        exported: dict[bytes, Any] = {
            name.encode(): self._guarded(function) for name, function in functions.items()
        }
        exported[b"interrupted"] = self._interrupted
        exported[b"void"] = self._void
        exported[b"point"] = self._point
        exported[b"refused"] = lambda: self.out_of_memory
        exported[b"ARRAY"] = bridge.ARRAY
        exported[b"OBJECT"] = bridge.OBJECT
        return exported

    def can(self, action: str, resource: str) -> bool:
        """Ask the live policy."""
        return bool(self._host.can(action, resource))

    def value(self, tokens: tuple[Any, ...]) -> Any:
        """Build the value that `S.with_tokens` sent."""
        return take(iter(self.take_fed(tokens)))

    def answering(self, function: Callable[..., Any]) -> Callable[..., tuple[bool, Any]]:
        """See `modules.Calls`."""

        def answered(*arguments: Any) -> tuple[bool, Any]:
            try:
                return True, self.to_lua(function(*arguments))
            except HandlerError as error:
                return False, error
            finally:
                self._fed.clear()

        return answered

    def warn(self, message: str) -> None:
        """Log a warning about the message being handled."""
        if self._log_volume.admits(len(message)):
            self._host.log("warn", message, self._automatic_fields(), "")

    def take_fed(self, tokens: Sequence[Any]) -> Sequence[Any]:
        """Join what was fed before to the last tokens of a stream."""
        if not self._fed:
            return tokens
        fed, self._fed = self._fed, []
        fed.extend(tokens)
        return fed

    def _guarded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*arguments: Any) -> Any:
            if not self._fit():
                return self._exhausted()
            try:
                result = function(*arguments)
            except HandlerError as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - no other exception may reach Lua
                failure = HandlerError(f"internal error: {type(error).__name__}: {error}", INTERNAL)
            else:
                if result.__class__ is not bytes:
                    self._burden(result)
                return result if self._fit(size_of(result)) else self._exhausted()
            self._burden(failure)
            if self._fit():
                raise failure
            return self._exhausted()

        return guarded

    def _exhausted(self) -> None:
        """Return what needs no memory; the count hook ends the handler."""
        self.out_of_memory = True

    def _interrupted(self) -> bool:
        return self.out_of_memory or self.voided or self._interrupted_by() is not None

    def _void(self) -> None:
        self.voided = True

    def _point(self, place: int) -> bool:
        """Turn to a message of a batch; true where it is to be the last."""
        turn = self.turn
        try:
            return turn is not None and turn(place)
        except Exception:  # no exception may reach Lua from here
            logger.exception("a batch could not be followed")
            return True

    def _feed(self, *tokens: Any) -> None:
        self._fed.extend(tokens)

    def _message(self) -> MessageContext:
        if self._context is None:
            raise HandlerError("no delivery found in context", INVALID, retryable=False)
        return self._context

    def _message_header(self, key: bytes) -> Any:
        return self.to_lua(self._message().headers.get(shown(key)))

    def _automatic_fields(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "consumer": self._identity.consumer_id,
            "queue": self._identity.queue_id,
        }
        if self._context is not None:
            fields["message_id"] = self._context.message_id
            fields["attempt"] = self._context.attempt
        return fields

    def _log(self, level: bytes, message: bytes, name: bytes, location: bytes, *tokens: Any) -> None:
        stream = self.take_fed(tokens)
        if not self._log_volume.admits(len(message) + size_of(tuple(stream))):
            return
        fields = self._automatic_fields()
        fields["location"] = shown(location)
        given = take(iter(stream))
        fields.update((shown(key), value) for key, value in given.items())
        text = _cut(shown(message[: limits.MAX_LOG_RECORD + 1]), limits.MAX_LOG_RECORD)
        self._host.log(level.decode(), text, fields, _cut(shown(name), limits.MAX_LOGGER_NAME))

    def _make_error(
        self,
        message: bytes,
        kind: bytes,
        retryable: bool | None,  # noqa: FBT001 - in the order in which Lua passes it
        frames: bytes,
        *tokens: Any,
    ) -> HandlerError:
        details = take(iter(self.take_fed(tokens))) if tokens else None
        return HandlerError(
            _error_text(message), shown(kind), retryable=retryable, details=details, frames=_lines(frames)
        )

    def _error_call_stack(self, error: HandlerError) -> Any:
        frames = []
        for level, line in enumerate(_own(error).frames):
            position, _, name = line.partition(": in ")
            source, _, number = position.rpartition(":")
            frames.append(
                {
                    "level": level,
                    "source": source,
                    "line": int(number) if number.lstrip("-").isdigit() else 0,
                    "name": name,
                    "type": "lua",
                }
            )
        return self.to_lua({"thread": self._identity.consumer_id, "frames": frames}) if frames else None

    def _answer(self, function: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
        """Call `function`: (True, its result), or (False, error) for a ValueError."""
        try:
            return True, self.to_lua(function(*arguments))
        except ValueError as error:
            return False, HandlerError(str(error), INVALID, retryable=False)

    def _json_encode(self, *tokens: Any) -> tuple[bool, Any]:
        try:
            return True, codecs.encode(take(iter(self.take_fed(tokens))), codecs.JSON)[0]
        except codecs.CodecError as error:
            reason = str(error).replace("the message", "the value")
            return False, HandlerError(reason, INTERNAL, retryable=False)

    def _json_decode(self, source: bytes) -> tuple[bool, Any]:
        if len(source) > limits.MAX_BODY:
            reason = f"the text has {len(source)} bytes, more than {limits.MAX_BODY}"
            return False, HandlerError(reason, INTERNAL, retryable=False)
        if len(source) >= codecs.HEAVY and not self._fit(codecs.weigh_json(source)):
            self.out_of_memory = True
            return False, None
        try:
            return True, self.to_lua(codecs.decode(source, None, codecs.JSON))
        except codecs.CodecError as error:
            reason = str(error).replace("the body", "the text")
            return False, HandlerError(reason, INTERNAL, retryable=False)

    def _json_validate(self, schema: bytes, instance: bytes) -> tuple[bool, Any]:
        if len(instance) >= codecs.HEAVY and not self._fit(codecs.weigh_json(instance)):
            self.out_of_memory = True
            return False, None
        try:
            schemas.validate(schema, instance)
        except schemas.SchemaError as error:
            return False, HandlerError(str(error), INVALID, retryable=False)
        return True, True


def stack_text(error: HandlerError) -> str:
    """Write what `err:stack()` returns: contexts outermost first, the message, and the Lua frames."""
    return "\n".join((*error.contexts, error.text, *(f"\t{line}" for line in error.frames)))


def _own(error: Any) -> HandlerError:
    """Every Python object in Lua is a HandlerError, unless lupa itself raised something."""
    return error if isinstance(error, HandlerError) else HandlerError(str(error), INTERNAL)


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _error_text(message: bytes) -> str:
    return _cut(shown(message[: limits.MAX_ERROR_TEXT + 1]), limits.MAX_ERROR_TEXT)


def _lines(frames: bytes) -> tuple[str, ...]:
    return tuple(shown(frames).split("\n")) if frames else ()


def _wrap_error(parent: Any, context: bytes, frames: bytes) -> HandlerError:
    if isinstance(parent, bytes):
        parent = HandlerError(_error_text(parent), frames=_lines(frames))
    inner = _own(parent)
    return HandlerError(
        inner.text,
        inner.kind_value,
        retryable=inner.is_retryable,
        details=inner.detail_values,
        contexts=(_error_text(context), *inner.contexts)[: limits.MAX_ERROR_CONTEXTS],
        frames=inner.frames or _lines(frames),
    )


def _copy_error(error: HandlerError) -> HandlerError:
    """Copy what a called function's caller gets: neither identity nor stack (lua-api.md 3.1.4)."""
    return HandlerError(
        error.text, error.kind_value, retryable=error.is_retryable, details=error.detail_values
    )


def _parse_duration(value: bytes) -> int | None:
    decoded = text(value)
    try:
        return durations.parse_duration(decoded) if isinstance(decoded, str) else None
    except ValueError:
        return None
