"""One question to several processes of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp


async def ask_all(urls: Sequence[str], path: str, *, accept: str, timeout: float) -> Sequence[bytes]:
    """The bodies of all that answer 200 to a GET within ``timeout`` seconds, in the order of ``urls``."""
    limit = aiohttp.ClientTimeout(total=timeout)
    async with aiohttp.ClientSession(timeout=limit, headers={"Accept": accept}) as session:
        answers = await asyncio.gather(*[_ask(session, url + path) for url in urls])
    return [answer for answer in answers if answer is not None]


async def _ask(session: aiohttp.ClientSession, url: str) -> bytes | None:
    try:
        async with session.get(url) as response:
            return await response.read() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
