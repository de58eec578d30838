"""The OpenAPI document: it is valid, complete, and says what the routes do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from gateway.app import all_routes
from gateway.docs_pages import render
from gateway.openapi import document
from shared.errors import BY_PROBLEM
from shared.position import Cursor

DOCUMENT = document()
OPERATIONS = [
    (path, method, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
IDS = [f"{method.upper()} {path}" for path, method, _ in OPERATIONS]


def walk(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from walk(value)
    elif isinstance(part, list):
        for value in part:
            yield from walk(value)


def resolve(part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = DOCUMENT
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_it_is_json_of_the_right_kind() -> None:
    assert json.loads(json.dumps(DOCUMENT)) == DOCUMENT
    assert DOCUMENT["openapi"] == "3.1.0"
    assert {"title", "version", "license"} <= DOCUMENT["info"].keys()


def test_every_route_is_described_and_every_description_is_a_route() -> None:
    served = {
        (re.sub(r"\{(\w+):\w+\}", r"{\1}", route.path), method)
        for route in all_routes()
        if getattr(route, "include_in_schema", True)
        for method in route.methods or {"GET"}
        if method != "HEAD"
    }
    assert {(path, method.upper()) for path, method, _ in OPERATIONS} == served


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, _, operation in OPERATIONS]
    assert len(ids) == len(set(ids))


def test_references_resolve_and_components_are_used() -> None:
    used = {part["$ref"] for part in walk(DOCUMENT) if "$ref" in part}
    for reference in used:
        assert resolve({"$ref": reference})
    defined = {f"#/components/{kind}/{name}" for kind, parts in DOCUMENT["components"].items() for name in parts}
    assert defined == used


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_an_operation_is_whole(path: str, method: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert set(operation["tags"]) <= {tag["name"] for tag in DOCUMENT["tags"]}
    statuses = operation["responses"].keys()
    assert any(status.startswith("2") for status in statuses)
    assert all(answer["description"] for answer in operation["responses"].values())
    parameters = [resolve(parameter) for parameter in operation.get("parameters", ())]
    names = [(parameter["in"], parameter["name"]) for parameter in parameters]
    assert len(names) == len(set(names))
    in_path = {name for place, name in names if place == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", path))
    assert all(parameter["description"] and parameter["schema"] for parameter in parameters)
    assert ("requestBody" in operation) == (method in {"post", "put"})


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS, ids=IDS)
def test_problems_are_real_and_stand_under_their_status(path: str, method: str, operation: dict[str, Any]) -> None:
    for status, answer in operation["responses"].items():
        for problem in re.findall(r"\(/problems/([a-z-]+)\)", answer["description"]):
            assert str(BY_PROBLEM[problem].status) == status
        for media_type, media in answer.get("content", {}).items():
            if media_type == "application/problem+json":
                assert media["example"]["status"] == int(status)


def test_examples_have_what_their_schemas_require() -> None:
    checked = 0
    for part in walk(DOCUMENT["components"]["schemas"]):
        for example in part.get("examples", ()):
            if part.get("type") == "object":
                assert set(part.get("required", ())) <= example.keys()
                assert example.keys() <= part["properties"].keys() or part.get("additionalProperties") is True
                checked += 1
    assert checked >= 8


def test_example_cursors_are_cursors() -> None:
    receipt = DOCUMENT["components"]["schemas"]["Receipt"]["examples"][0]
    cursor = Cursor.decode(receipt["cursor"])
    assert (str(cursor.epoch), cursor.next) == (receipt["epoch"], {receipt["partition"]: int(receipt["offset"]) + 1})


class Balance(HTMLParser):
    """Checks that every element is closed where it was opened."""

    VOID = frozenset({"meta", "link", "br", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        assert "style" not in named
        assert not any(name.startswith("on") for name in named)
        self.ids += [named["id"]] if "id" in named else []
        self.links += [named["href"]] if tag == "a" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_every_operation_and_loads_nothing_foreign() -> None:
    html = render()
    page = Balance()
    page.feed(html)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {operation["operationId"] for _, _, operation in OPERATIONS} <= set(page.ids)
    assert all(link.startswith("/") for link in page.links)
    assert "<script" not in html
    assert "http://127.0.0.1:8080" in html
    assert "//cdn" not in html
