"""What a client's ``Accept-Encoding`` asks for."""

from __future__ import annotations

import pytest
from starlette.requests import Request

from gateway.negotiation import Coding, accepted_coding

IDENTITY, GZIP, EITHER = Coding.IDENTITY, Coding.GZIP, Coding.EITHER


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], IDENTITY),
        ([""], IDENTITY),
        (["br"], IDENTITY),
        (["gzip"], EITHER),
        (["gzip, deflate, br, zstd"], EITHER),
        (["br", "gzip"], EITHER),
        (["x-gzip"], EITHER),
        (["GZip ; Q=0.5"], EITHER),
        (["*"], EITHER),
        (["br, *;q=0.1"], EITHER),
        (["gzip, gzip;q=0"], EITHER),
        (["identity;q=0.5, gzip"], EITHER),
        (["identity, gzip;q=0.5"], IDENTITY),
        (["gzip;q=0"], IDENTITY),
        (["gzip;q=0, *"], IDENTITY),
        (["*;q=0"], IDENTITY),
        (["gzip;q=rubbish"], IDENTITY),
        (["gzip, identity;q=0"], GZIP),
        (["gzip, *;q=0"], GZIP),
    ],
)
def test_codings(fields: list[str], found: Coding) -> None:
    headers = [(b"accept-encoding", field.encode()) for field in fields]
    assert accepted_coding(Request({"type": "http", "headers": headers})) is found
