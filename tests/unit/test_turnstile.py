"""The turnstile: everybody gets in, in order, a few a turn."""

from __future__ import annotations

import asyncio

from gateway.turnstile import Turnstile


async def test_a_crowd_gets_in_in_order_and_others_have_their_turns_meanwhile() -> None:
    turnstile = Turnstile(3)
    inside: list[int] = []
    at_a_turn: list[int] = []

    async def visit(number: int) -> None:
        await turnstile.enter()
        inside.append(number)

    async def live() -> None:
        while len(inside) < 30:
            at_a_turn.append(len(inside))
            await asyncio.sleep(0)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(live())
        for number in range(30):
            group.create_task(visit(number))
    assert inside == list(range(30))
    assert len(set(at_a_turn)) > 3, "it went on between them"


async def test_who_leaves_the_queue_costs_nobody_a_place() -> None:
    turnstile = Turnstile(1)
    await turnstile.enter()
    impatient = asyncio.create_task(turnstile.enter())
    patient = asyncio.create_task(turnstile.enter())
    await asyncio.sleep(0)
    impatient.cancel()
    async with asyncio.timeout(10):
        await patient
        await turnstile.enter()


async def test_who_waits_without_a_task_stands_in_the_same_queue() -> None:
    turnstile = Turnstile(2)
    inside: list[int] = []

    async def visit(number: int) -> None:
        await turnstile.enter()
        inside.append(number)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(0, 20, 2):
            group.create_task(visit(number))
            await asyncio.sleep(0)
            turnstile.call(lambda number=number: inside.append(number + 1))
    while len(inside) < 20:
        await asyncio.sleep(0)
    assert sorted(inside) == list(range(20))
    assert [number for number in inside if number % 2] == list(range(1, 20, 2))
    assert [number for number in inside if not number % 2] == list(range(0, 20, 2))
