"""What one would write without us: starlette on uvicorn, a commit per request, a queue per subscriber.

``python baseline_app.py PORT FOLDER``
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def create_app(folder: Path) -> Starlette:
    database = sqlite3.connect(folder / "plain.db", isolation_level=None, check_same_thread=False)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, stream TEXT, body BLOB)")
    queues: set[asyncio.Queue[str]] = set()

    async def ready(_request: Request) -> JSONResponse:
        return JSONResponse({"ready": True})

    async def store(request: Request) -> JSONResponse:
        body = await request.body()
        json.loads(body)
        # Autocommit: in the log on disk when execute returns. In the loop's thread, as a commit is shorter than the
        # way to a thread and back.
        stream = request.path_params["name"]
        cursor = database.execute("INSERT INTO events (stream, body) VALUES (?, ?)", (stream, body))
        return JSONResponse({"id": cursor.lastrowid}, 201)

    lock = threading.Lock()

    def insert(stream: str, body: bytes) -> int | None:
        with lock:
            return database.execute("INSERT INTO events (stream, body) VALUES (?, ?)", (stream, body)).lastrowid

    async def store_in_thread(request: Request) -> JSONResponse:
        body = await request.body()
        json.loads(body)
        return JSONResponse({"id": await run_in_threadpool(insert, request.path_params["name"], body)}, 201)

    async def null(request: Request) -> Response:
        value = orjson.loads(await request.body())
        answer = {"id": str(uuid.uuid4()), "stream": request.path_params["name"], "members": len(value)}
        return Response(orjson.dumps(answer), 201, media_type="application/json")

    async def null_lines(request: Request) -> Response:
        lines = (await request.body()).splitlines()
        stream = request.path_params["name"]
        answers = [
            orjson.dumps({"id": str(uuid.uuid4()), "stream": stream, "members": len(orjson.loads(line))})
            for line in lines
        ]
        return Response(b"\n".join(answers), 200, media_type="application/x-ndjson")

    async def publish(request: Request) -> JSONResponse:
        text = (await request.body()).decode()
        for queue in queues:
            queue.put_nowait(text)
        return JSONResponse({"subscribers": len(queues)}, 201)

    async def follow(_request: Request) -> EventSourceResponse:
        async def events() -> AsyncIterator[dict[str, str]]:
            queue: asyncio.Queue[str] = asyncio.Queue()
            queues.add(queue)
            try:
                yield {"event": "cdrs.cursor", "id": "0", "data": ""}
                while True:
                    yield {"id": "1", "data": await queue.get()}
            finally:
                queues.discard(queue)

        return EventSourceResponse(events())

    readers: dict[str, set[asyncio.Queue[str]]] = {}

    async def publish_many(request: Request) -> JSONResponse:
        """NDJSON; each line says its stream."""
        for line in (await request.body()).splitlines():
            event = orjson.loads(line)
            for queue in readers.get(event["cdrsstream"], ()):
                queue.put_nowait(line.decode())
        return JSONResponse({"stored": True}, 201)

    async def follow_many(request: Request) -> EventSourceResponse:
        async def events() -> AsyncIterator[dict[str, str]]:
            queue: asyncio.Queue[str] = asyncio.Queue()
            for stream in request.query_params.getlist("stream"):
                readers.setdefault(stream, set()).add(queue)
            try:
                yield {"event": "cdrs.cursor", "id": "0", "data": ""}
                while True:
                    yield {"id": "1", "data": await queue.get()}
            finally:
                for stream in request.query_params.getlist("stream"):
                    readers[stream].discard(queue)

        return EventSourceResponse(events())

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/store/{name}", store, methods=["POST"]),
            Route("/store-in-thread/{name}", store_in_thread, methods=["POST"]),
            Route("/null/{name}", null, methods=["POST"]),
            Route("/null-lines/{name}", null_lines, methods=["POST"]),
            Route("/publish", publish, methods=["POST"]),
            Route("/events", follow),
            Route("/v1/events", follow_many, methods=["GET"]),
            Route("/v1/events", publish_many, methods=["POST"]),
        ]
    )


if __name__ == "__main__":
    uvicorn.run(
        create_app(Path(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False,
        loop="uvloop", http="httptools", timeout_graceful_shutdown=1,
    )  # fmt: skip
