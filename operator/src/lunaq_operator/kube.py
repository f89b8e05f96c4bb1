"""The only Kubernetes writer, and the reads by name; used by reconcile, lease, watch (credentials) and main.

The official client's aio `ApiClient` with plain dicts: its typed models cost 30 MiB to import and triple
the CPU per call (design.md section 6). Every write carries our field manager.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from lunaq_operator import kinds, names

if TYPE_CHECKING:
    import ssl

    from lunaq_operator.kinds import Kind
    from lunaq_operator.store import Obj

_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_JSON = "application/json"

_NOT_FOUND = 404
_CONFLICT = 409
_INVALID = 422
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

Patch = list[dict[str, Any]]


class KubeError(Exception):
    """The API server said no, or nothing; `status` is the HTTP status, 0 without an answer."""

    def __init__(self, status: int, reason: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason

    @property
    def changed_meanwhile(self) -> bool:
        """Whether the object was not, or no longer, the one that the write meant."""
        return self.status in (_CONFLICT, _INVALID)


async def load(kubeconfig: str = "") -> Configuration:
    """Find the API server: `kubeconfig`, else KUBECONFIG, else the pod's ServiceAccount, else ~/.kube."""
    configuration = Configuration()
    configuration.retries = False
    explicit = kubeconfig or os.environ.get("KUBECONFIG", "")
    if not explicit and _SERVICE_ACCOUNT.exists():  # noqa: ASYNC240 - once, at the start
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    else:
        load_file: Any = config.load_kube_config  # untyped, like all of the client
        await load_file(config_file=explicit or None, client_configuration=configuration)
    return configuration


class Kube:
    """A connection to one API server; `timeout` bounds every call, in seconds."""

    def __init__(self, configuration: Configuration, *, timeout: float = 15.0) -> None:
        self._client: Any = ApiClient(configuration)  # untyped in large parts
        self._client.user_agent = names.FIELD_MANAGER
        self._timeout = timeout
        self.writes = 0
        """How many requests that change something were made; an idle operator makes none."""

    @property
    def server(self) -> str:
        """Return the API server's URL."""
        return str(self._client.configuration.host)

    def ssl_context(self) -> ssl.SSLContext:
        """Return the TLS settings, for the session that kopf watches through."""
        context: ssl.SSLContext = self._client.rest_client.ssl_context
        return context

    async def auth_headers(self) -> dict[str, str]:
        """Return the credentials of this moment; a ServiceAccount's token is re-read as it rotates."""
        headers: dict[str, str] = {}
        await self._client.update_params_for_auth(headers, [], ["BearerToken"], "", "", None)
        return headers

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Obj | None:
        """Read one object by name; None where there is none."""
        try:
            return _object(await self._call("GET", kind.path(namespace, name)))
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Obj]:
        """Read a collection in full, once; for commands, not for reconcilers, which have the store."""
        items: list[Obj] = []
        query = {"limit": "500"} | ({"labelSelector": selector} if selector else {})
        while True:
            page = await self._call("GET", kind.path(namespace), query=query)
            items += page.get("items") or []
            query["continue"] = page["metadata"].get("continue") or ""
            if not query["continue"]:
                return items

    async def apply(self, kind: Kind, obj: Obj) -> Obj:
        """Create or change an object by server-side apply; what we applied before and omit now goes."""
        metadata = obj["metadata"]
        path = kind.path(metadata.get("namespace") or "", metadata["name"])
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return _object(await self._call("PATCH", path, query=query, body=obj, content_type=_APPLY))

    async def patch_status(self, kind: Kind, obj: Obj, changes: dict[str, Any]) -> Obj | None:
        """Merge `changes` into an object's status; None where the object is gone, or another by now.

        Lists are replaced, and a value of None removes its field. The uid is sent along, so that a status
        never lands on a successor of the same name.
        """
        body = {"metadata": {"uid": obj["metadata"]["uid"]}, "status": changes}
        return await self._patch(kind, obj, body, _MERGE, "status")

    async def patch(self, kind: Kind, obj: Obj, changes: dict[str, Any]) -> Obj | None:
        """Merge `changes` into an object; None where it is gone, or another by now."""
        metadata = {"uid": obj["metadata"]["uid"]} | changes.get("metadata", {})
        return await self._patch(kind, obj, changes | {"metadata": metadata}, _MERGE)

    async def set_finalizer(self, kind: Kind, obj: Obj, finalizer: str, *, present: bool) -> Obj | None:
        """Add or remove one finalizer, leaving others alone; None where the object is gone.

        KubeError 409 or 422 where the object changed meanwhile: the caller is run again by that change.
        """
        metadata = obj["metadata"]
        old = metadata.get("finalizers") or []
        if (finalizer in old) is present:
            return obj
        new = [*old, finalizer] if present else [text for text in old if text != finalizer]
        patch: Patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "add", "path": "/metadata/finalizers", "value": new},
        ]
        return await self._patch(kind, obj, patch, _JSON_PATCH)

    async def delete(self, kind: Kind, obj: Obj) -> None:
        """Delete exactly this object, in the background; one that is gone, or another, is no error."""
        body = {
            "preconditions": {"uid": obj["metadata"]["uid"]},
            "propagationPolicy": "Background",
        }
        metadata = obj["metadata"]
        path = kind.path(metadata.get("namespace") or "", metadata["name"])
        try:
            await self._call("DELETE", path, body=body)
        except KubeError as error:
            if error.status not in (_NOT_FOUND, _CONFLICT):
                raise

    async def create(self, kind: Kind, obj: Obj) -> Obj | None:
        """Create an object that nobody changes later (a Lease, an Event); None where the name is taken."""
        path = kind.path(obj["metadata"].get("namespace") or "")
        try:
            return _object(await self._call("POST", path, query=_manager(), body=obj))
        except KubeError as error:
            if error.status == _CONFLICT:
                return None
            raise

    async def replace(self, kind: Kind, obj: Obj) -> Obj | None:
        """Replace an object if its resourceVersion is still the one in `obj`; None where it is not."""
        metadata = obj["metadata"]
        path = kind.path(metadata.get("namespace") or "", metadata["name"])
        try:
            return _object(await self._call("PUT", path, query=_manager(), body=obj))
        except KubeError as error:
            if error.status in (_CONFLICT, _NOT_FOUND):
                return None
            raise

    async def served(self, group: str, version: str) -> set[str]:
        """Return the plurals that the API server serves in a group, none where it lacks the group."""
        try:
            found = await self._call("GET", f"/apis/{group}/{version}")
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return set()
            raise
        return {resource["name"] for resource in found.get("resources") or ()}

    async def get_lease(self, namespace: str, name: str) -> Obj | None:
        """Read a Lease (see `lease.Leases`)."""
        return await self.get(kinds.LEASES, namespace, name)

    async def create_lease(self, namespace: str, name: str, spec: dict[str, Any]) -> Obj | None:
        """Create a Lease (see `lease.Leases`)."""
        metadata = {"namespace": namespace, "name": name}
        lease = {"apiVersion": kinds.LEASES.api_version, "kind": "Lease", "metadata": metadata, "spec": spec}
        return await self.create(kinds.LEASES, lease)

    async def update_lease(self, lease: Obj, spec: dict[str, Any]) -> Obj | None:
        """Replace a Lease's spec (see `lease.Leases`)."""
        return await self.replace(kinds.LEASES, lease | {"spec": spec})

    async def _patch(
        self, kind: Kind, obj: Obj, body: Any, content_type: str, subresource: str = ""
    ) -> Obj | None:
        metadata = obj["metadata"]
        path = kind.path(metadata.get("namespace") or "", metadata["name"], subresource)
        try:
            answer = await self._call("PATCH", path, query=_manager(), body=body, content_type=content_type)
        except KubeError as error:
            if error.status == _NOT_FOUND or (error.status == _CONFLICT and content_type == _MERGE):
                return None
            raise
        return _object(answer)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Any = None,
        content_type: str = _JSON,
    ) -> Any:
        if method != "GET" and "/leases" not in path:
            self.writes += 1
        headers = {"Accept": _JSON, "Content-Type": content_type, "User-Agent": names.FIELD_MANAGER}
        headers |= await self.auth_headers()
        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = await self._client.call_api(
                method, url, headers, body, _request_timeout=aiohttp.ClientTimeout(total=self._timeout)
            )
            data = await response.read()
        except TimeoutError as error:
            raise KubeError(0, "Timeout", f"{method} {path}: no answer in {self._timeout:.0f} s") from error
        except aiohttp.ClientError as error:
            raise KubeError(0, "Connection", f"{method} {path}: {error}") from error
        return _answer(method, path, response.status, data)


def _object(answer: Any) -> Obj:
    """Say that an answer is one object, as it is where a kind's path was asked."""
    obj: Obj = answer
    return obj


def _manager() -> dict[str, str]:
    return {"fieldManager": names.FIELD_MANAGER}


def _answer(method: str, path: str, status: int, data: bytes) -> Any:
    """Return the parsed body of a success; KubeError with the API server's own words otherwise."""
    if status < 300:  # noqa: PLR2004 - HTTP's line between success and everything else
        return json.loads(data)
    try:
        said = json.loads(data)
    except ValueError:
        said = {"message": data[:200].decode(errors="replace")}
    reason = str(said.get("reason") or status)
    raise KubeError(status, reason, f"{method} {path}: {status} {reason}: {said.get('message', '')}")
