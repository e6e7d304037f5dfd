"""The description of the wire for people and for programs: it is what the routes and the messages are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.errors import ConfigError
from atoll.network import tables, wire
from atoll.network.authority import Authority
from atoll.network.coordinator import Coordinator, Office
from atoll.network.enrolment import enrolment_routes
from atoll.network.operating import Operating
from atoll.network.routes import Routes, plainly
from tests.network.vectors.make import MESSAGES, PLACE, PLAN

yaml = pytest.importorskip("yaml", reason="pip install PyYAML")
DOCS = Path(__file__).parents[2] / "docs"
VERBS = ("get", "put", "post", "delete", "patch")


@pytest.fixture(scope="module")
def api() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCS / "openapi.yaml").read_text("utf-8"))
    return found


def operations(api: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(verb, path, operation)."""
    for path, item in api["paths"].items():
        for verb in VERBS:
            if verb in item:
                yield verb, path, item[verb]


def routes(place: Path) -> set[tuple[str, str]]:
    """(verb, path) of what a coordinator answers, but for the pages that it shows."""

    async def asked() -> set[tuple[str, str]]:
        coordinator = Coordinator(Office(place / "run", PLAN, 1, 1), lambda *_: None)  # type: ignore[arg-type, return-value]
        found = Routes(coordinator, plainly)
        site = found.application()
        Operating(coordinator, found, ()).install(site)
        site.add_routes(enrolment_routes(Authority.init(place / "ca")))
        coordinator.close()
        return {
            (route.method.lower(), route.resource.canonical)
            for route in site.router.routes()
            if route.resource is not None and route.method != "HEAD"
        }

    shown = ("/v1/", "/healthz", "/metrics")
    return {(verb, path) for verb, path in asyncio.run(asked()) if path.startswith(shown)}


def test_every_route_is_described_and_nothing_else(api: dict[str, Any], tmp_path: Path) -> None:
    assert {(verb, path) for verb, path, _ in operations(api)} == routes(tmp_path)


def test_tables_and_schemas_are_current() -> None:
    for path, text in tables.pages(DOCS):
        assert path.read_text("utf-8") == text, f"{path}: python -m atoll.network.tables"
    with pytest.raises(ConfigError, match="no place"):
        tables.within("a page", "", ("begin", "end"))


def test_every_field_has_a_meaning() -> None:
    for name, kind in tables.messages().items():
        assert list(tables.SAYS[name]) == list(kind.__struct_fields__), name
    assert tables.SAYS.keys() == tables.messages().keys()


def test_what_is_written_is_yaml() -> None:
    schemas = tables.schemas()
    assert yaml.safe_load(tables.yaml(schemas)) == schemas
    odd = {"a b": [], "x": [{"y": [1, None]}, "é: # '"], "z": {"$ref": "#/z", "true": True}}
    assert yaml.safe_load(tables.yaml(odd)) == odd


def test_references_lead_somewhere(api: dict[str, Any]) -> None:
    text = json.dumps(api)
    found = {*re.findall(r'"#/components/(\w+)/(\w+)"', text)}
    for part, name in found:
        assert name in api["components"][part], (part, name)
    for part in ("schemas", "responses", "parameters"):
        for name in api["components"][part]:
            assert (part, name) in found or name in ("Field", "Plan", "Registry"), (
                f"{part}/{name} is used nowhere"
            )
    names = [each["operationId"] for _, _, each in operations(api)]
    assert len(names) == len({*names})


def test_what_a_coordinator_answers_is_described(api: dict[str, Any]) -> None:
    """Each answer of the exchange has a status of its operation, and the message that is promised for it."""
    steps = json.loads((PLACE / "exchange.json").read_text("utf-8"))["steps"]
    assert len(steps) > 20
    for step in steps:
        verb, asked = step["request"]["method"].lower(), step["request"]["path"].partition("?")[0]
        (operation,) = (
            each
            for told, path, each in operations(api)
            if told == verb and re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)), asked)
        )
        assert str(step["response"]["status"]) in operation["responses"], step["what"]
        response = resolved(api, operation["responses"][str(step["response"]["status"])])
        if "text" not in step["response"]:
            continue
        schema = response["content"]["application/json"]["schema"]
        kinds = [each["$ref"].rpartition("/")[2] for each in schema.get("anyOf", [schema])]
        assert any(accepted(step["response"]["text"], kind) for kind in kinds), step["what"]


def resolved(api: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    return part if reference is None else api["components"]["responses"][reference.rpartition("/")[2]]


def accepted(text: str, kind: str) -> bool:
    try:
        wire.unpack(text.encode(), getattr(wire, kind))
    except Exception:
        return False
    return True


def test_examples_are_messages(api: dict[str, Any]) -> None:
    for verb, path, each in operations(api):
        content = each.get("requestBody", {}).get("content", {}).get("application/json")
        if content is None or "identity" in each["tags"]:
            continue
        kind = getattr(wire, content["schema"]["$ref"].rpartition("/")[2])
        assert content["examples"], (verb, path)
        for example in content["examples"].values():
            wire.unpack(json.dumps(example["value"]).encode(), kind)


def test_the_page_names_every_problem_and_path(api: dict[str, Any]) -> None:
    page = (DOCS / "wire.md").read_text("utf-8")
    files = ("routes.py", "uploads.py", "enrolment.py", "tls.py")
    source = "".join(Path(wire.__file__).with_name(name).read_text("utf-8") for name in files)
    problems = {*re.findall(r'(?:refusal|problem)\(\s*\d+,\s*"(\w+)"', source)}
    assert len(problems) > 8
    for problem in problems:
        assert f"`{problem}`" in page, problem
    for _, path, _ in operations(api):
        stem = path.partition("{")[0].rstrip("/")
        assert stem in page or path in ("/healthz", "/metrics", "/v1/status", "/v1/admin/stop"), path
    for message in {type(each).__name__ for each in MESSAGES}:
        assert f"#### {message}" in page
