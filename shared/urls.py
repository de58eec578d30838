"""URLs that name several hosts, as those of brokers do."""

from __future__ import annotations

import re
from urllib.parse import SplitResult

_URL = re.compile(
    r"([^:/?#]+)://((?:[^/?#\[\]]|\[[^/?#\[\]]*\])*)(/[^?#]*)?(?:\?([^#]*))?(?:#(.*))?",
    re.DOTALL,
)


def split_url(url: str) -> SplitResult:
    """The parts (RFC 3986, section 3). Not `urlsplit`, which since the mending of CVE-2025-0938 takes no list of hosts
    with an IPv6 address in it. Raises `ValueError`."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError("it is not scheme://host:port; an IPv6 address stands in brackets")
    scheme, hosts, path, query, fragment = found.groups(default="")
    return SplitResult(scheme.lower(), hosts, path, query, fragment)
