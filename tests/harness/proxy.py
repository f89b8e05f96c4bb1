"""Reads and writes objects without a kubectl process for each; tests look every 50 ms, and write hundreds.

Called by harness.apiserver. One `kubectl proxy` on a socket in a private folder does the authentication.
"""

import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

_GROUPS = {
    "": ("configmap", "pod", "secret", "serviceaccount"),
    "lunaq.dev/v1alpha1": ("broker", "queue", "consumer"),
    "apps/v1": ("deployment",),
}
_PATHS = {
    name: f"/apis/{group}" if group else "/api/v1"
    for group, singulars in _GROUPS.items()
    for singular in singulars
    for name in (singular, f"{singular}s")
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def path_of(*args: str) -> str | None:
    """Give the URL path of what `kubectl get` would read by these arguments.

    Only `KIND [NAME] -n NAMESPACE [-l SELECTOR]` of namespaced kinds is known; None for anything else.
    """
    words, options = [], {}
    rest = iter(args)
    for word in rest:
        if word in ("-n", "-l"):
            options[word] = next(rest, "")
        elif word.startswith("-"):
            return None
        else:
            words.append(word)
    if not 1 <= len(words) <= 2 or words[0] not in _PATHS or not options.get("-n"):
        return None
    plural = words[0] if words[0].endswith("s") else f"{words[0]}s"
    path = "/".join([_PATHS[words[0]], "namespaces", options["-n"], plural, *words[1:]])
    return path + (f"?{urlencode({'labelSelector': options['-l']})}" if "-l" in options else "")


def read(proxy: Path, path: str) -> tuple[int, Any]:
    """Read a path through the proxy's socket; give the status and the decoded body.

    Raises:
        OSError: nothing listens on the socket.
    """
    status, body = _ask(proxy, "GET", path, None)
    return status, json.loads(body) if status == http.HTTPStatus.OK else None


def write(proxy: Path, method: str, path: str, obj: Any) -> tuple[int, Any]:
    """Send an object, any unknown field refused; give the status and what the API server answers.

    Raises:
        OSError: nothing listens on the socket.
    """
    status, body = _ask(proxy, method, path, json.dumps(obj))
    return status, json.loads(body)


def _ask(proxy: Path, method: str, path: str, body: str | None) -> tuple[int, bytes]:
    connection = _UnixConnection(proxy)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
