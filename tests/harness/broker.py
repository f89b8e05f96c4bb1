"""What the tests may do with any RabbitMQ: one of their own, one in a pod, or one named by the environment.

The base of harness.rabbitmq.RabbitMQ and harness.broker_pod.BrokerPod.
"""

import base64
import http.client
import json as jsonlib
import secrets
from typing import Any
from urllib.parse import quote, urlsplit


class ManagementError(RuntimeError):
    """The management API refused a call.

    Attributes:
        status: the HTTP status.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Broker:
    """A RabbitMQ that is reachable from the test process.

    Args:
        host: of the AMQP listener.
        port: of the AMQP listener.
        management_uri: of the management API, without a trailing slash, such as `http://127.0.0.1:15672`.
        username: of an administrator.
        password: of the same.
    """

    scheme = "amqp"

    def __init__(self, host: str, port: int, management_uri: str, username: str, password: str) -> None:
        self.host = host
        self.port = port
        self.management_uri = management_uri
        self.username = username
        self.password = password

    def uri(self, vhost: str = "/", username: str | None = None, password: str | None = None) -> str:
        """Give the AMQP URI with credentials, the administrator's unless others are given."""
        user = quote(username if username is not None else self.username, safe="")
        word = quote(password if password is not None else self.password, safe="")
        return f"{self.scheme}://{user}:{word}@{self.host}:{self.port}/{quote(vhost, safe='')}"

    def bare_uri(self, vhost: str = "/") -> str:
        """Give the AMQP URI without credentials, as a Broker resource carries it."""
        return f"{self.scheme}://{self.host}:{self.port}/{quote(vhost, safe='')}"

    def new_vhost(self) -> str:
        """Make a virtual host of a random name that the administrator may use, and give the name."""
        name = f"lq-{secrets.token_hex(4)}"
        self.api("PUT", f"/vhosts/{name}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"/permissions/{name}/{quote(self.username, safe='')}", everything)
        return name

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it; one that is gone is fine."""
        try:
            self.api("DELETE", f"/vhosts/{quote(name, safe='')}")
        except ManagementError as error:
            if error.status != http.HTTPStatus.NOT_FOUND:
                raise

    def api(self, method: str, path: str, json: Any = None) -> Any:
        """Call the management API.

        Args:
            method: the HTTP method.
            path: below `/api`, such as `/queues/%2F/app%3Aemails`; a leading `/api` is accepted.
            json: the body, if any.

        Returns:
            The decoded answer, or None if it is empty.

        Raises:
            ManagementError: for any status from 400 up.
            OSError: the API cannot be reached.
        """
        base = urlsplit(self.management_uri)
        kind = http.client.HTTPSConnection if base.scheme == "https" else http.client.HTTPConnection
        connection = kind(base.hostname or "", base.port, timeout=30)
        credentials = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
        below = path.removeprefix("/api/").removeprefix("/")
        try:
            body = None if json is None else jsonlib.dumps(json)
            connection.request(method, f"{base.path.rstrip('/')}/api/{below}", body, headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise ManagementError(response.status, f"{method} {path}: {response.status} {text}")
        return jsonlib.loads(text) if text else None
