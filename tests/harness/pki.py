"""Makes the certificates and kubeconfig files of one throw-away control plane, with openssl.

Called by harness.control_plane; nothing here outlives the folder it is given.
"""

import base64
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from harness.toolchain import system_program

_DAYS = "30"


class Pki:
    """A certificate authority in a folder, and what it signs.

    Args:
        folder: an existing, private folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._openssl = system_program("openssl", "scripts/setup-cluster")
        self._run(
            "req", "-x509", *self._new_key("ca"), "-days", _DAYS, "-subj", "/CN=lunaq-tests", "-out", "ca.crt"
        )
        self._run("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
        self._run("ec", "-in", "sa.key", "-pubout", "-out", "sa.pub")

    def path(self, name: str) -> str:
        """Give the path of a file in the folder, such as `ca.crt`."""
        return str(self.folder / name)

    def server(
        self, name: str, hosts: Sequence[str], addresses: Sequence[str], *, expired: bool = False
    ) -> None:
        """Sign `<name>.crt` for a server that answers by these names and addresses."""
        names = [f"DNS:{host}" for host in hosts] + [f"IP:{address}" for address in addresses]
        self._sign(name, f"/CN={name}", f"subjectAltName={','.join(names)}", expired=expired)

    def client(self, name: str, user: str, group: str | None = None, *, expired: bool = False) -> None:
        """Sign `<name>.crt` for a user, in a Kubernetes group if given."""
        subject = f"/O={group}/CN={user}" if group else f"/CN={user}"
        self._sign(name, subject, "extendedKeyUsage=clientAuth", expired=expired)

    def kubeconfig(self, name: str, server: str) -> Path:
        """Write `<name>.conf`: the client certificate `name` against the API server `server`."""

        def data(file: str) -> str:
            return base64.b64encode((self.folder / file).read_bytes()).decode()

        user = {"client-certificate-data": data(f"{name}.crt"), "client-key-data": data(f"{name}.key")}
        cluster = {"server": server, "certificate-authority-data": data("ca.crt")}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": name}}],
            "current-context": "tests",
        }
        path = self.folder / f"{name}.conf"
        path.write_text(json.dumps(config))  # JSON is YAML
        return path

    def _new_key(self, name: str) -> list[str]:
        return [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            f"{name}.key",
        ]

    def _sign(self, name: str, subject: str, extension: str, *, expired: bool) -> None:
        (self.folder / f"{name}.ext").write_text(extension)
        self._run("req", *self._new_key(name), "-subj", subject, "-out", f"{name}.csr")
        self._run(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "-1" if expired else _DAYS, "-extfile", f"{name}.ext", "-out", f"{name}.crt"),
        )

    def _run(self, *args: str) -> None:
        done = subprocess.run(
            [self._openssl, *args], cwd=self.folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"openssl {' '.join(args)} failed:\n{done.stderr}")
