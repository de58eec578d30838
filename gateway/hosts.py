"""By which names a gateway may be called that only this machine reaches."""

from __future__ import annotations

import re

_ADDRESS = re.compile(rb"[0-9.]+")


def is_near(host: bytes, known: frozenset[bytes]) -> bool:
    """Whether a Host field names an address, a name without a dot, or one that is known (in lower case).

    Any other name may be one that its owner has led here, so that the pages of his site are of one origin with us (DNS
    rebinding): browsers let them read and write everything then. Names without a dot are nobody's to lead.
    """
    if host.startswith(b"["):
        return True
    name = host.partition(b":")[0].rstrip(b".").lower()
    is_local = b"." not in name or name.endswith(b".localhost") or _ADDRESS.fullmatch(name) is not None
    return is_local or name in known
