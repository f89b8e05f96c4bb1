"""Drivers and queues of an entries document (lua-api.md 2.3, 2.4); called by `parse`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from lunaq_runtime import durations, ids
from lunaq_runtime.entries import schema
from lunaq_runtime.entries.model import Driver, Queue, Retry, Tls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lunaq_runtime.entries.parse_entry import Entry
    from lunaq_runtime.entries.parse_fields import Place
    from lunaq_runtime.ids import Id

_LONGEST_NAME = 200
"""Bytes of a broker-side name; AMQP carries 255, and retry queues add a suffix."""

_MEMORY_MAX_LENGTH = 1000


def build_drivers(entries: list[Entry], environ: Mapping[str, str]) -> dict[Id, Driver]:
    """Build all drivers; those with an error are left out."""
    return {entry.id: _driver(entry, environ) for entry in entries}


def build_queues(entries: list[Entry], drivers: dict[Id, Entry]) -> dict[Id, Queue]:
    """Build all queues; errors are noted at the entries' places."""
    by_id = {entry.id: entry for entry in entries}
    return {entry.id: _queue(entry, by_id, drivers) for entry in entries}


def _driver(entry: Entry, environ: Mapping[str, str]) -> Driver:
    if entry.kind == "queue.driver.memory":
        return Driver(entry.id, "memory")
    values = entry.values
    delay, max_delay = values["reconnect_delay"], values["reconnect_max_delay"]
    if delay > max_delay:
        entry.place.error("reconnect_delay", "is longer than reconnect_max_delay: lower it")
    tls = _tls(values["tls"], entry.place, environ)
    return Driver(
        entry.id,
        "amqp",
        url=_url(values, entry.place),
        connection_name=values["connection_name"],
        heartbeat=_seconds(values["heartbeat"]),
        connection_timeout=_seconds(values["connection_timeout"]),
        reconnect_delay=durations.to_seconds(delay),
        reconnect_max_delay=durations.to_seconds(max_delay),
        tls=tls,
    )


def _url(values: dict[str, Any], place: Place) -> str:
    """Put vhost, mechanism and `tls.enabled` into the URL; error texts never repeat it."""
    try:
        url: str = values["url"]
        parts = urlsplit(url)
        valid = parts.scheme in ("amqp", "amqps") and (parts.port or True)
    except ValueError:
        valid = False
    if not valid:
        place.error("url", "is no AMQP URI: write amqp://host:5672/vhost, or amqps:// for TLS")
        return ""
    scheme = "amqps" if values["tls"]["enabled"] else parts.scheme
    path = parts.path if values["vhost"] is None else "/" + quote(values["vhost"], safe="")
    query = parts.query
    if values["auth_mechanism"] != "PLAIN":
        pairs = [pair for pair in parse_qsl(query) if pair[0] != "auth_mechanism"]
        query = urlencode([*pairs, ("auth_mechanism", values["auth_mechanism"].lower())])
    return urlunsplit((scheme, parts.netloc, path, query, ""))


def _tls(values: dict[str, Any], place: Place, environ: Mapping[str, str]) -> Tls | None:
    texts = {name: _tls_text(values, name, place, environ) for name in ("ca", "cert", "key")}
    files = {f"{name}_file": values[f"{name}_file"] for name in texts}
    for name, text in texts.items():
        if text and files[f"{name}_file"]:
            place.error(f"tls.{name}_file", f"cannot be given beside tls.{name}: remove one of them")
    if bool(texts["cert"]) != bool(texts["key"]):
        place.error("tls", "cert and key only go together: give both, or none")
    if bool(files["cert_file"]) != bool(files["key_file"]):
        place.error("tls", "cert_file and key_file only go together: give both, or none")
    tls = Tls(
        server_name=values["server_name"],
        insecure_skip_verify=values["insecure_skip_verify"],
        **texts,
        **files,
    )
    if tls.insecure_skip_verify:
        place.warn("tls.insecure_skip_verify", "any certificate is accepted: use tls.ca instead")
    return tls if values["enabled"] or tls != Tls() else None


def _tls_text(values: dict[str, Any], name: str, place: Place, environ: Mapping[str, str]) -> str:
    inline: str = values[name]
    variable: str = values[f"{name}_env"]
    if not variable:
        return inline
    if inline:
        place.error(f"tls.{name}_env", f"cannot be given beside tls.{name}: remove one of them")
    elif variable not in environ:
        place.error(f"tls.{name}_env", f"the environment has no variable {variable}: set it")
    return environ.get(variable, "")


def _queue(entry: Entry, queues: dict[Id, Entry], drivers: dict[Id, Entry]) -> Queue:
    values, place = entry.values, entry.place
    lunaq, amqp = values["lunaq"], values["driver_options"]["amqp"]
    driver = _driver_of(entry, drivers)
    driver_values = driver.values if driver else {}
    dead_letter = _dead_letter(entry, queues, drivers)
    max_length = amqp["max_length"]
    if driver is not None and driver.kind == "queue.driver.memory":
        max_length = values["driver_options"]["memory"]["max_length"] or _MEMORY_MAX_LENGTH
    queue = Queue(
        id=entry.id,
        driver=driver.id if driver else entry.id,
        queue_name=_queue_name(entry),
        codec=values["codec"],
        type=_type(entry),
        durable=amqp["durable"],
        auto_delete=amqp["auto_delete"],
        message_ttl_ms=_message_ttl(entry, driver_values),
        queue_expiry_ms=_capped(
            amqp["queue_expiry"] or driver_values.get("default_queue_expiry"),
            place,
            "driver_options.amqp.queue_expiry",
        ),
        max_length=max_length,
        max_length_bytes=lunaq["maxLengthBytes"],
        single_active_consumer=lunaq["singleActiveConsumer"],
        max_priority=lunaq["maxPriority"],
        retry=_retry(entry),
        dead_letter=dead_letter.id if dead_letter else None,
        dead_letter_queue_name=_dead_letter_name(entry, dead_letter),
        declare=lunaq["declare"],
        observe=lunaq["observe"],
        owner=lunaq["owner"],
    )
    _check_losses(queue, place)
    return queue


def _driver_of(entry: Entry, drivers: dict[Id, Entry]) -> Entry | None:
    wanted: Id | None = entry.values["driver"]
    if wanted is None:
        if len(drivers) == 1:
            return next(iter(drivers.values()))
        if entry.raw.get("driver") is None:
            entry.place.error("driver", f"driver ID is required: this document has {len(drivers)} drivers")
        return None
    if wanted not in drivers:
        entry.place.error("driver", f"{wanted} is not a driver of this document: {_known(drivers)}")
    return drivers.get(wanted)


def _known(entries: Mapping[Id, Entry]) -> str:
    return "it has " + ", ".join(sorted(map(str, entries))) if entries else "it has none"


def _queue_name(entry: Entry) -> str:
    name: str = entry.values["queue_name"] or entry.id.name
    if len(name.encode()) > _LONGEST_NAME:
        entry.place.error("queue_name", f"is longer than {_LONGEST_NAME} bytes in UTF-8: shorten it")
    if name.startswith("amq."):
        entry.place.error("queue_name", "begins with amq., which brokers keep for themselves: rename it")
    return name


def _type(entry: Entry) -> str:
    """Choose the type: brokers have neither transient nor auto-deleted quorum queues."""
    amqp, lunaq, place = entry.values["driver_options"]["amqp"], entry.values["lunaq"], entry.place
    volatile = amqp["auto_delete"] or not amqp["durable"]
    chosen: str = lunaq["type"] or ("classic" if volatile else "quorum")
    if chosen == "quorum" and volatile:
        place.error("lunaq.type", "a quorum queue is durable and never auto-deleted: write type classic")
    if chosen == "quorum" and lunaq["maxPriority"] is not None:
        place.error("lunaq.maxPriority", "works only with lunaq.type classic")
    return chosen


def _message_ttl(entry: Entry, driver_values: dict[str, Any]) -> int | None:
    lunaq = _milliseconds(entry.values["lunaq"]["messageTTL"], entry.place, "lunaq.messageTTL")
    path = "driver_options.amqp.message_ttl"
    option = _capped(entry.values["driver_options"]["amqp"]["message_ttl"], entry.place, path)
    if None not in (lunaq, option) and lunaq != option:
        entry.place.error("lunaq.messageTTL", f"differs from {path}: remove one of them")
    if lunaq is not None:
        return lunaq
    return option or _capped(driver_values.get("default_queue_ttl"), entry.place, path)


def _retry(entry: Entry) -> Retry:
    retry, place = entry.values["lunaq"]["retry"], entry.place
    attempts, other = retry["maxAttempts"], entry.values["dead_letter"]["max_attempts"]
    if None not in (attempts, other) and attempts != other:
        text = f"is {attempts}, but dead_letter.max_attempts is {other}: remove one of them"
        place.error("lunaq.retry.maxAttempts", text)
    delays = tuple(
        _milliseconds(delay, place, f"lunaq.retry.delays[{index}]") or 1
        for index, delay in enumerate(retry["delays"] or ())
    )
    return Retry(other or attempts or Retry().max_attempts, delays or Retry().delays_ms)


def _dead_letter(entry: Entry, queues: dict[Id, Entry], drivers: dict[Id, Entry]) -> Entry | None:
    wanted: Id | None = entry.values["dead_letter"]["queue"]
    if wanted is None:
        return None
    path = "dead_letter.queue"
    target = queues.get(wanted)
    if target is None:
        entry.place.error(path, f"{wanted} is not a queue of this document: {_known(queues)}")
    elif target is entry:
        entry.place.error(path, "is the queue itself: name another queue, or leave it out")
    elif len(drivers) > 1 and target.values["driver"] != entry.values["driver"]:
        entry.place.error(path, f"{wanted} is on another driver: both queues must be on one broker")
    return target


def _dead_letter_name(entry: Entry, target: Entry | None) -> str:
    if target is None:
        return ids.dead_queue_name(entry.values["queue_name"] or entry.id.name)
    name: str = target.values["queue_name"] or target.id.name
    return name


def _check_losses(queue: Queue, place: Place) -> None:
    if not queue.durable:
        place.warn("driver_options.amqp.durable", "messages can be lost when the broker restarts")
    if queue.auto_delete:
        place.warn("driver_options.amqp.auto_delete", "messages are lost with the last consumer")
    if queue.queue_expiry_ms is not None:
        place.warn("driver_options.amqp.queue_expiry", "messages are lost with an unused queue")
    if queue.type == "classic" and (queue.message_ttl_ms or queue.max_length or queue.max_length_bytes):
        place.warn("lunaq.type", "a classic queue can lose messages that expire or that find it full")


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else durations.to_seconds(nanoseconds)


def _milliseconds(nanoseconds: int | None, place: Place, path: str) -> int | None:
    if nanoseconds is None:
        return None
    try:
        return durations.to_milliseconds(nanoseconds)
    except ValueError as error:
        place.error(path, str(error))
        return None


def _capped(nanoseconds: int | None, place: Place, path: str) -> int | None:
    milliseconds = _milliseconds(nanoseconds, place, path)
    if milliseconds is not None and milliseconds > schema.MAX_TTL_MS:
        place.warn(path, f"is cut to {schema.MAX_TTL_MS} ms")
        return schema.MAX_TTL_MS
    return milliseconds
