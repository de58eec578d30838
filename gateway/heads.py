"""What the head of a request must be for us, beyond what its parser sees to."""

from __future__ import annotations

import re

from gateway.hosts import is_near
from shared.errors import HeadersTooLarge, InvalidRequest, MethodNotAllowed, MisdirectedRequest
from shared.settings import GatewaySettings

_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=-]*(?::[0-9]{0,5})?|\[[0-9A-Fa-f:.]{2,45}\](?::[0-9]{0,5})?")
_OVERRIDES = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})


def check_head(
    method: bytes, target: bytes, version: str, fields: list[tuple[bytes, bytes]], hosts: frozenset[bytes] | None
) -> None:
    """Raise what is wrong with it. ``fields``: names in lower case; ``hosts``: see `gateway.hosts`; None: any."""
    if version not in {"1.0", "1.1"}:
        raise InvalidRequest("this server speaks HTTP/1.1")
    if method in {b"TRACE", b"CONNECT"}:
        raise MethodNotAllowed()
    if not target.startswith(b"/") or b"#" in target:
        raise InvalidRequest("the request target is a path")
    found = 0
    for name, value in fields:
        if name == b"host":
            found += 1
            if _HOST.fullmatch(value) is None:
                raise InvalidRequest("the Host field is not valid")
            if hosts is not None and not is_near(value, hosts):
                raise MisdirectedRequest("only this machine gets in: for another name set gateway.public_url to it")
        elif name == b"transfer-encoding" and (value.lower() != b"chunked" or version == "1.0"):
            raise InvalidRequest("the only transfer coding is chunked")
        elif name in _OVERRIDES:
            raise MethodNotAllowed("the method is the one of the request line")
    if found != 1 and (found or version == "1.1"):
        raise InvalidRequest("a request has one Host field")


def headers_too_large(limits: GatewaySettings) -> HeadersTooLarge:
    """The refusal of a head that has more or longer fields."""
    return HeadersTooLarge(
        f"a request has at most {limits.max_headers} header fields of {limits.max_header_bytes} bytes in all"
    )
