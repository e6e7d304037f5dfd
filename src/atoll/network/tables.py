"""The messages as tables of `docs/wire.md` and as schemas of `docs/openapi.yaml`: what stands there between two marks.

`python -m atoll.network.tables` writes both anew; it is run where `docs` is.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from atoll.errors import ConfigError
from atoll.network import invitation, wire

__all__ = ["BEGIN", "END", "SAYS", "messages", "schemas", "tables", "within", "yaml"]

BEGIN = "from src/atoll/network, by `python -m atoll.network.tables`"
END = "up to here"

SAYS: Mapping[str, Mapping[str, str]] = {
    "Problem": {
        "problem": "a word for programs",
        "message": "a sentence for people",
        "hint": "what to do about it",
    },
    "Hello": {
        "protocols": "versions that the coordinator speaks",
        "software": "what it is",
        "run": "the run, the same over restarts",
        "name": "whom it takes the caller for; null for a stranger",
        "role": '"node", "operator" or "auditor"; null for a stranger',
    },
    "Joining": {
        "protocols": "versions that the node speaks",
        "software": "what it is, for logs",
        "session": "random text, new at every start of the node; sent as `Atoll-Session` from then on",
        "ed25519": "the public key under which it signs in secure aggregation; null: it takes no part in that",
        "certificate": "the certificate (PEM) that names this key, over TLS",
    },
    "Joined": {
        "protocol": "the version that is spoken: the newest that both speak",
        "run": "the run; another one than before means that nothing kept is of use",
        "number": "the node's place among the clients, `client` in its answers",
        "plan": "what it takes part in",
        "known": "whether the coordinator has the form of its data from before; saying it again does no harm",
    },
    "Plan": {
        "method": "the method's name (`atoll methods`)",
        "hyper": "every setting of the method",
        "model": "the model's name (`atoll models`), or code that both sides have, `module:Name`",
        "loss": "null: cross_entropy where there are classes, else mse",
        "metrics": "what is measured beside the loss",
        "augment": "what happens to the inputs of training batches",
        "channel": "what happens to updates before they leave; the node does its half of it",
        "dp_sgd": "private gradients: clip norm and noise",
        "seed": "of the run; addresses of all draws begin with it",
        "engine": "how Python's nodes take steps; it matters for last bits only",
        "data": "how a file becomes samples: `label`, `features`, `classes`, and others of `atoll run` for data files",
        "validation": "share or number of its samples that the node sets aside",
        "test": 'share of its samples kept for tests; "auto" is a fifth; null is none',
        "rounds": "how many there will be",
        "cohort": "clients a round; null: everybody, or 10 of more than 20",
        "public": "inputs that everybody knows, for methods that distil: a body with one tensor, x",
        "repeatable": "noise and rounding may be drawn from the seed, for a simulation to repeat them: never private",
        "down": "the codec by which models come packed, in the field `down` of `shared`",
        "adapter": "what is trained in the place of the model's own parameters, over a base that all have",
    },
    "Field": {
        "name": 'the part\'s name, "" where there is one part',
        "dtype": "its type, as in records: F32, I64 ...",
        "shape": "of one sample",
    },
    "DataForm": {
        "inputs": "the parts of a sample that a model reads",
        "targets": "what is to be predicted",
        "classes": "how many; null for a regression",
        "train": "samples to train on, at least 1",
        "validation": "samples for validation; null: none",
        "test": "samples for tests; null: none, and then the node is not asked to judge",
        "named": "whether parts go by name",
        "device": "what the node computes on: cpu, cuda:0",
        "base": "SHA-256 of the parameters that are not trained; absent where all are",
    },
    "Blob": {"sha256": "the body's hash, by which it is fetched", "size": "its bytes"},
    "Task": {
        "id": "round-call-attempt; names the task among those of this node, also after a restart",
        "round": "from 1",
        "program": '"train", "evaluate", "personal", "evaluate on validation" ..., or one of the method\'s own; of kind'
        ' "secagg" the stage',
        "shared": "a record, the same for all who are asked",
        "own": "a record whose fields take the place of those in `shared`, or come after them",
        "memory": "the task after which the node kept the memory that it begins with; null: none yet",
        "epochs": "passes over its data, where they are not what the plan says",
        "limit": "steps after which it stops",
        "setting": "what the channel must know of the run",
        "cohort": "how many are asked",
        "seconds": "left from now on, by the node's own clock; null: as long as it takes",
        "most": "bytes that the answer may have",
        "kind": '"work" on the node\'s data, or its part in a stage of secure aggregation',
        "of": 'of kind "secagg": the task whose update is to be summed',
        "since": "the name under which the node keeps the model that `shared` is told from; null: `shared` is whole",
        "instead": "the same, whole, for a node that has not kept that",
        "keep": "the name under which the node keeps the model that it began with (its SHA-256); null: it need not",
    },
    "Member": {
        "name": "the node",
        "ed25519": "its key for signatures",
        "certificate": "the certificate that names this key, for others to check",
    },
    "Registry": {"members": "all who are asked"},
    "Answered": {
        "offset": "bytes of the answer that are there",
        "done": "whether the task is settled",
        "refused": "why the answer is not used; null: it is",
    },
    "Verdict": {"problem": '"stale"', "round": "the round of the node's present task; 0: it has none"},
    "Beat": {"task": "the task that the node is at", "done": "how far it is, from 0 to 1"},
    "Beaten": {
        "wanted": "whether that task is still waited for; if not, it may be dropped",
        "round": "the round of the node's present task; 0: it has none",
        "state": "what the run is doing, for people",
    },
    "Failure": {
        "kind": '"refused" and "spent" (its update may be in a sum already) are for good; after any other the task is'
        " asked again, twice by default",
        "reason": "for people",
    },
    "Trust": {"authority": "its certificate in PEM"},
    "Enrolling": {
        "token": "the invitation, `atoll1.NAME.SECRET.PIN`",
        "csr": "the certificate request in PEM: PKCS 10, for a key on P-256",
        "ed25519": "the public key that signs in secure aggregation",
        "proof": "its signature of the request",
    },
    "Renewing": {"csr": "the certificate request in PEM"},
    "Certified": {"certificate": "the node's, in PEM", "authority": "the authority's, in PEM"},
}
"""What each field means."""


def messages() -> dict[str, type[wire.Message]]:
    """All messages, in the order in which they are defined."""
    defined = [*vars(wire).items(), *vars(invitation).items()]
    found = {name: each for name, each in defined if inspect.isclass(each)}
    return {
        name: each
        for name, each in found.items()
        if issubclass(each, wire.Message) and each is not wire.Message
    }


def schemas() -> dict[str, Any]:
    """JSON Schema (2020-12) of each message, with the meaning of each field."""
    template = "#/components/schemas/{name}"
    _, found = msgspec.json.schema_components(messages().values(), ref_template=template)
    for name, schema in found.items():
        schema["description"] = _about(name)
        schema["additionalProperties"] = False
        del schema["title"]
        for field, says in SAYS[name].items():
            schema["properties"][field]["description"] = says
    return {name: found[name] for name in messages()}


def tables() -> str:
    """Each message: what it is, and its fields; a star for those that may be left out."""
    parts = []
    for name, schema in schemas().items():
        rows = ["| field | type | meaning |", "| --- | --- | --- |"]
        for field, kind in schema["properties"].items():
            star = "" if field in schema.get("required", ()) else " *"
            line = f"`{field}`{star}", _words(kind), kind["description"]
            rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |")
        parts += [f"#### {name}", schema["description"], "\n".join(rows)]
    return "\n\n".join(parts)


def within(text: str, inner: str, marks: tuple[str, str]) -> str:
    """A page with `inner` between its marks.  Raises ConfigError where it lacks them."""
    before, begin, rest = text.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ConfigError(
            "the page has no place for the messages", hint=f"it is from {marks[0]} to {marks[1]}"
        )
    return f"{before}{begin}\n{inner}\n{end}{after}"


def yaml(value: Any, indent: int = 0) -> str:
    """JSON's values as YAML in blocks. Text is in quotes, as JSON writes it."""
    return "\n".join(" " * indent + line for line in _lines(value))


def pages(place: Path) -> Iterator[tuple[Path, str]]:
    """(file, its text as it is to be) of the pages in a folder."""
    page, described = place / "wire.md", place / "openapi.yaml"
    yield page, within(page.read_text("utf-8"), f"\n{tables()}\n", (f"<!-- {BEGIN} -->", f"<!-- {END} -->"))
    marks = f"# {BEGIN}", f"    # {END}"
    yield described, within(described.read_text("utf-8"), yaml(schemas(), 4), marks)


# --- parts ----------------------------------------------------------------------------------------------------------


def _about(name: str) -> str:
    """The first paragraph of what the class says of itself."""
    return " ".join((inspect.getdoc(messages()[name]) or "").partition("\n\n")[0].split())


def _words(schema: Mapping[str, Any]) -> str:
    """A schema in words: "integer, 0 or more", "text of up to 200 characters or null"."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_words(each) for each in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(json.dumps(each) for each in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_words(schema['items'])}{_bounds(schema, 'Items', '')}"
    if kind == "string":
        pattern = f" `{schema['pattern']}`" if "pattern" in schema else ""
        return f"text{pattern}{_bounds(schema, 'Length', ' characters')}"
    if kind in ("integer", "number"):
        return f"{kind}{' from ' + str(schema['minimum']) if 'minimum' in schema else ''}"
    return {"boolean": "true or false", "null": "null", "object": "object"}[str(kind)]


def _bounds(schema: Mapping[str, Any], what: str, unit: str) -> str:
    least, most = schema.get(f"min{what}"), schema.get(f"max{what}")
    if most is None:
        return ""
    return f", {least} to {most}{unit}" if least else f", up to {most}{unit}"


_PLAIN = re.compile(r"[A-Za-z]\w*", re.ASCII)
_WORDS_OF_YAML = ("true", "false", "yes", "no", "on", "off", "null")


def _lines(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            name = key if _PLAIN.fullmatch(key) and key.lower() not in _WORDS_OF_YAML else json.dumps(key)
            yield from _nested(f"{name}:", each, "  ")
    elif isinstance(value, list | tuple) and value:
        for each in value:
            yield from _nested("-", each, "  ")
    else:
        yield json.dumps(value, ensure_ascii=False)


def _nested(head: str, value: Any, indent: str) -> Iterator[str]:
    if isinstance(value, Mapping | list | tuple) and value:
        yield head
        yield from (indent + line for line in _lines(value))
    else:
        yield f"{head} {next(_lines(value))}"


if __name__ == "__main__":
    for path, text in list(pages(Path("docs"))):
        path.write_text(text, "utf-8")
