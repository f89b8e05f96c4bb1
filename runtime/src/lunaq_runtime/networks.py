"""What `http_client` may be allowed beyond public addresses; `entries` and the operator's Consumer ask."""

from __future__ import annotations

from ipaddress import ip_network


def check_private_range(text: str) -> None:
    """Raise ValueError, with what to write instead, where `text` is no network that may be allowed.

    Link-local addresses never are: cloud providers hand out credentials there.
    """
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"{error}: write a network such as 10.0.0.0/8") from None
    if network.is_link_local:
        raise ValueError(f"{text} is link-local, which http_client never connects to")
