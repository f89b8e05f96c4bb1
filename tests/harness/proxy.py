"""Reads objects from an API server without a kubectl process for each look; tests look every 50 ms.

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
    connection = _UnixConnection(proxy)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.status == http.HTTPStatus.OK else None
    finally:
        connection.close()
