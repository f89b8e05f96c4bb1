"""An Apache Qpid Broker-J of the tests' own, from the jars that scripts/setup-brokers fetched.

Called by the fixtures. Its virtual hosts are made through its management API, in memory or on Derby's files.
"""

import http.client
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path

from harness.broker import Broker
from harness.processes import Process, free_port, speaks_amqp
from harness.toolchain import qpid_library, system_program

_HOUSEKEEPING_MS = 100
"""How often expired messages are looked for; Broker-J's own default is 30 s."""


class Qpid(Broker):
    """Any Broker-J that tests may use: the management calls differ from RabbitMQ's."""

    def new_vhost(self, kind: str = "Memory") -> str:
        """Make a virtual host of a random name and give the name; `kind` is Memory or DERBY."""
        name = f"lq-{secrets.token_hex(4)}"
        host = {"type": kind, "housekeepingCheckPeriod": _HOUSEKEEPING_MS}
        node = {"type": kind, "virtualHostInitialConfiguration": json.dumps(host)}
        self.api("PUT", f"/latest/virtualhostnode/{name}", node)
        return name

    def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all that is in it."""
        self.api("DELETE", f"/latest/virtualhostnode/{name}")

    def delete_queue(self, vhost: str, name: str) -> None:
        """Delete a queue that no other names as its alternate."""
        self.api("DELETE", f"/latest/queue/{vhost}/{vhost}/{name}")


class OwnQpid(Qpid):
    """One broker on 127.0.0.1, its data in a temporary folder."""

    def __init__(self) -> None:
        management = free_port()
        super().__init__(
            "127.0.0.1", free_port(), f"http://127.0.0.1:{management}", "tests", secrets.token_hex(8)
        )
        self._dir = Path(tempfile.mkdtemp(prefix="lq-qpid-"))
        (self._dir / "config.json").write_text(json.dumps(self._config(management)))
        command = [
            system_program("java", "scripts/setup-brokers all"),
            *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m", "-XX:MaxDirectMemorySize=128m"),
            *("-cp", f"{qpid_library()}/*", f"-Dqpid.work_dir={self._dir / 'work'}"),
            f"-Dderby.stream.error.file={self._dir / 'derby.log'}",
            "org.apache.qpid.server.Main",
            *("-st", "JSON", "-sp", str(self._dir / "broker.json"), "-icp", str(self._dir / "config.json")),
        ]
        inherited = {name: os.environ[name] for name in ("PATH", "JAVA_HOME") if name in os.environ}
        env = inherited | {"HOME": str(self._dir), "LANG": "C.UTF-8"}
        self._java = Process("qpid", command, self._dir, env)

    def _config(self, management: int) -> object:
        # PLAIN over plain TCP is refused by default.
        provider = {
            "name": "plain",
            "type": "Plain",
            "secureOnlyMechanisms": [],
            "users": [{"name": self.username, "type": "managed", "password": self.password}],
        }
        amqp = {
            "name": "AMQP",
            "type": "AMQP",
            "protocols": ["AMQP_0_9_1"],
            "virtualhostaliases": [
                {"name": "nameAlias", "type": "nameAlias"},
                {"name": "defaultAlias", "type": "defaultAlias"},
            ],
        }
        http_port = {"name": "HTTP", "type": "HTTP", "protocols": ["HTTP"]}
        listening = {"bindingAddress": "127.0.0.1", "authenticationProvider": "plain"}
        rules = [{"name": "root", "type": "NameAndLevel", "level": "WARN", "loggerName": "ROOT"}]
        return {
            "name": "tests",
            "modelVersion": "9.0",
            "authenticationproviders": [provider],
            "ports": [amqp | listening | {"port": self.port}, http_port | listening | {"port": management}],
            "plugins": [{"type": "MANAGEMENT-HTTP", "name": "http", "httpBasicAuthenticationEnabled": True}],
            "brokerloggers": [{"name": "console", "type": "Console", "brokerloginclusionrules": rules}],
            "virtualhostnodes": [],
        }

    def start(self) -> None:
        """Start the broker and wait until it serves; nothing if it runs."""
        self.launch()
        self.await_ready()

    def launch(self) -> None:
        """Begin to start the broker, if it does not run."""
        if not self._java.running:
            self._java.start()

    def await_ready(self) -> None:
        """Wait until a launched broker serves AMQP and its management API."""
        self._java.wait_until(self._serving, "Qpid to serve", timeout=180)

    def _serving(self) -> bool:
        try:
            self.api("GET", "/latest/broker")
        except (http.client.HTTPException, RuntimeError):
            return False
        return speaks_amqp(self.host, self.port)

    def restart(self) -> None:
        """End the broker gracefully and start it again on the same ports; what is on files is kept."""
        self._java.stop(timeout=60)
        self.start()

    def stop(self) -> None:
        """End it and remove its data."""
        self._java.kill()
        shutil.rmtree(self._dir, ignore_errors=True)
