"""Collects a handler's Lua from where the spec says it is, and refuses what does not compile."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lunaq_operator import kinds
from lunaq_operator.compile import Code
from lunaq_operator.conditions import Reason
from lunaq_operator.reconcile.context import NotReady
from lunaq_runtime.entries import model
from lunaq_runtime.lua.check import load_error

if TYPE_CHECKING:
    from lunaq_operator.reconcile.context import Context
    from lunaq_operator.resources import Consumer, SourceFrom
    from lunaq_operator.store import Obj


def reads_config_maps(consumer: Consumer) -> bool:
    """Tell whether code stands in ConfigMaps, which are not watched and so looked at now and then."""
    handler = consumer.handler
    return handler.source_from is not None or any(library.source_from for library in handler.libraries)


async def read(context: Context, consumer: Consumer) -> Code:
    """Return handler and libraries; NotReady with HandlerMissing, naming ConfigMap and key."""
    found: dict[str, Obj | None] = {}
    handler = consumer.handler

    async def text(source: str, source_from: SourceFrom | None) -> str:
        if source_from is None:
            return source
        ref = source_from.config_map_key_ref
        if ref.name not in found:
            found[ref.name] = await context.kube.get(kinds.CONFIG_MAPS, consumer.namespace, ref.name)
        config_map = found[ref.name]
        value = ((config_map or {}).get("data") or {}).get(ref.key)
        if value is None:
            what = f"key {ref.key} in ConfigMap" if config_map is not None else "ConfigMap"
            raise NotReady(
                Reason.HANDLER_MISSING,
                f"there is no {what} {consumer.namespace}/{ref.name}; create it",
                context.settings.source_recheck,
            )
        return str(value)

    source = await text(handler.source, handler.source_from)
    libraries = {
        library.name: await text(library.source, library.source_from) for library in handler.libraries
    }
    return Code(source, libraries)


def check(context: Context, consumer: Consumer, code: Code) -> None:
    """Refuse code that does not compile; what runs already goes on running."""
    checked = context.memory.checked.get(consumer.key)
    if checked is None or checked[0] != digest(code):
        imports = {name: (name, source) for name, source in code.libraries.items()}
        handler = model.Handler(chunk_name=consumer.name, source=code.source, imports=imports)
        checked = (digest(code), load_error(handler) or "")
        context.memory.checked[consumer.key] = checked
    if checked[1]:
        raise NotReady(
            Reason.HANDLER_DOES_NOT_COMPILE, f"{checked[1]}; a handler that ran before goes on running"
        )


def digest(code: Code) -> str:
    """Digest handler and libraries, for the status."""
    hashed = hashlib.sha256(code.source.encode())
    for name, source in sorted(code.libraries.items()):
        hashed.update(b"\0" + name.encode() + b"\0" + source.encode())
    return f"sha256:{hashed.hexdigest()}"
