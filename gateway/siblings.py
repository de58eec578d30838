"""The gateway processes that share one port: each answers for all of them where it would be chance who is asked."""

from __future__ import annotations

from collections.abc import Sequence

PATIENCE = 1.0
"""Seconds that the others have; one that hangs is left out."""


class Siblings:
    """The other gateway processes on this one's port."""

    def __init__(self, name: str, urls: Sequence[str]) -> None:
        """``name``: this process's. ``urls``: where each of the others can be asked alone."""
        self.name = name
        self.urls = urls

    async def metrics(self, accept: str) -> Sequence[bytes]:
        """What each that answers has counted, in the format that is asked for."""
        from shared.backends.http.asking import ask_all  # noqa: PLC0415 -- a gateway that is alone needs no client

        return await ask_all(self.urls, "/metrics", accept=accept, timeout=PATIENCE)


def merged(bodies: Sequence[bytes]) -> bytes:
    """Several scrapes as one: every family once, with the series of all of them. They tell themselves by a label."""
    families: dict[bytes, list[bytes]] = {}
    for body in bodies:
        for block in body.removesuffix(b"# EOF\n").split(b"# HELP ")[1:]:
            lines = block.splitlines(keepends=True)
            head = [line for n, line in enumerate(lines) if n == 0 or line.startswith(b"#")]
            families.setdefault(b"".join(head), []).extend(lines[len(head) :])
    end = b"# EOF\n" if bodies[0].endswith(b"# EOF\n") else b""
    return b"".join(b"# HELP " + head + b"".join(series) for head, series in families.items()) + end
