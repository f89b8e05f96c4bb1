"""User name and password from the files of a mounted Secret; brokers ask at every connect.

Read anew each time, so that a rotated Secret is picked up without a restart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lunaq_runtime.brokers.base import BrokerError

if TYPE_CHECKING:
    from pathlib import Path

USERNAME = "username"
PASSWORD = "password"  # noqa: S105 - the key's name


class MountedCredentials:
    """Calling it returns the pair as it is now; BrokerError `connection` names a key that is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self) -> tuple[str, str]:
        # The kubelet swaps the link `..data`: following it once keeps both values from one version.
        data = self._folder / "..data"
        folder = data.resolve() if data.exists() else self._folder
        return self._read(folder, USERNAME), self._read(folder, PASSWORD)

    def _read(self, folder: Path, key: str) -> str:
        try:
            text = (folder / key).read_text(encoding="utf-8")
        except FileNotFoundError:
            reason = f"has no key '{key}': add it to the Secret that is mounted there"
        except OSError as error:
            reason = f"cannot be read for key '{key}': {error.strerror}"
        except UnicodeDecodeError:
            reason = f"has a key '{key}' that is not UTF-8 text"
        else:
            if value := text.removesuffix("\n").removesuffix("\r"):
                return value
            reason = f"has an empty key '{key}': put a value into the Secret that is mounted there"
        raise BrokerError("connection", f"the credentials folder {self._folder} {reason}")
