"""How aiokafka's clients connect to brokers, and ask who leads, while one of them does not answer.

A broker that stands still accepts connections all the same: the kernel does. aiokafka gives it the time of any other
request, for the connection and once more for the question, and meanwhile connects to nobody else. With a second for
each, and that broker asked last, a new leader is found when there is one.
"""

# mypy: disable-error-code="import-untyped"
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from shared.settings import KafkaSettings

_logger = logging.getLogger(__name__)


def hasten(client: AIOKafkaClient, settings: KafkaSettings) -> None:
    """Bound what this client, which has not been started, waits for a connection and for who leads by
    ``kafka.connect_timeout``; any other request keeps ``kafka.request_timeout``."""
    hastened = _Client(client, settings)
    client._request_timeout_ms = int(hastened.connect_timeout * 1000)
    client._get_conn = hastened.get_conn
    client._metadata_update = hastened.metadata_update


class _Client:
    """What stands in for two of its methods."""

    def __init__(self, client: AIOKafkaClient, settings: KafkaSettings) -> None:
        self.connect_timeout = min(settings.connect_timeout, settings.request_timeout)
        self._request_timeout = settings.request_timeout
        self._client = client
        self._get_conn = client._get_conn
        self._silent: set[int | str] = set()
        """Brokers that did not answer when they were asked last."""

    async def get_conn(self, node_id: int | str, **options: Any) -> Any:
        """`AIOKafkaClient._get_conn`."""
        connection = await self._get_conn(node_id, **options)
        if connection is not None:
            connection._request_timeout = self._request_timeout
        return connection

    async def metadata_update(self, cluster_metadata: Any, topics: Collection[str] | None) -> bool:
        """`AIOKafkaClient._metadata_update`."""
        request = MetadataRequest(list(topics) if topics else None)
        nodes = self._nodes()
        for node in nodes:
            try:
                async with asyncio.timeout(self.connect_timeout):
                    connection = await self.get_conn(node)
                    metadata = None if connection is None else await connection.send(request)
            except (KafkaError, OSError, TimeoutError) as error:
                _logger.warning("broker %s does not say who leads: %r", node, error)
                metadata = None
            if metadata is None:
                self._silent.add(node)
                continue
            self._silent.discard(node)
            return self._take(cluster_metadata, metadata)
        _logger.error("no broker of %s says who leads", nodes)
        cluster_metadata.failed_update(None)
        return False

    def _nodes(self) -> list[int | str]:
        """Those to ask, in this order."""
        nodes: list[int | str] = [broker.nodeId for broker in self._client.cluster.brokers()]
        if self._first in self._client._conns:
            nodes.append("bootstrap")
        random.shuffle(nodes)
        return sorted(nodes, key=self._silent.__contains__)

    @property
    def _first(self) -> Any:
        return "bootstrap", ConnectionGroup.DEFAULT

    def _take(self, cluster: Any, metadata: Any) -> bool:
        if not metadata.brokers:
            return False  # a topic may be about to be made
        cluster.update_metadata(metadata)
        if self._first in self._client._conns and self._client.cluster.brokers():
            self._client._conns.pop(self._first).close()
        return True
