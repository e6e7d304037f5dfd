"""Which runs are the same experiment with other seeds, and what to call each experiment among the others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from atoll.runs.settings import OPERATIONAL
from atoll.runs.story import Story

__all__ = ["grouped", "labels", "settings", "value_words"]

_Known = tuple[str, Mapping[str, Any]]  # a run's method and its settings
_ABSENT = ("batch_size",)  # where none is a value of its own
_RESOLVED = ("data", "partition", "model", "clients", "cohort")
_MOST_OWN = 2  # own settings of a method that a label names though nothing else has them to compare with


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make an experiment: all but the seed and the operational ones."""
    return {key: value for key, value in config.items() if key not in OPERATIONAL}


def grouped(stories: Sequence[Story]) -> list[list[Story]]:
    """Runs that differ only in the seed, together, ordered by it; groups in the order of their first runs.

    A second run of the same settings and the same seed is no replicate: it starts a group of its own.
    """
    found: list[tuple[Hashable, list[Story]]] = []
    for story in stories:
        key = _key(story)
        for other, members in found:
            if other == key and story.seed not in [member.seed for member in members]:
                members.append(story)
                break
        else:
            found.append((key, [story]))
    return [sorted(members, key=lambda story: story.seed or 0) for _, members in found]


def _key(story: Story) -> Hashable:
    return story.method, story.start.get("parameters"), repr(sorted(_facts(story).items()))


def _facts(story: Story) -> dict[str, Any]:
    """The settings of a run, with what the run made of those that may be left open (such as a partition "auto")."""
    resolved = {key: story.start[key] for key in _RESOLVED if story.start.get(key) is not None}
    return {**settings(story.config), **resolved}


def labels(groups: Sequence[Sequence[Story]]) -> list[str]:
    """A name for each group: its method, and the settings in which the groups differ.

    Where two groups would be called the same (the same seed was run twice), the names of their runs tell them apart.
    """
    first = [members[0] for members in groups]
    known = [(story.method, _facts(story)) for story in first]
    texts = []
    for story, (method, facts) in zip(first, known, strict=True):
        shown = _shown(method, facts, known, _usual(story))
        words = [f"{key}={value_words(key, facts[key])}" for key in shown]
        texts.append(" ".join([method, ", ".join(words)]).strip())
    return [
        text if texts.count(text) == 1 else f"{text} ({story.name})"
        for text, story in zip(texts, first, strict=True)
    ]


def _usual(story: Story) -> list[str]:
    """The settings that are their defaults; of older runs, which do not say, none."""
    changed = story.start.get("changed")
    return [] if changed is None else [key for key in story.config if key not in changed]


def _shown(method: str, facts: Mapping[str, Any], known: Sequence[_Known], usual: Sequence[str]) -> list[str]:
    """The settings that set a run apart from the others, the method aside.

    What is not set is not named, nor what a method has by itself (`usual`) where no other run of it has another value.
    """
    own: list[str] = []
    keys: list[str] = []
    for key, value in facts.items():
        holders = [each for each in known if key in each[1]]
        if key == "method" or (value is None and key not in _ABSENT):
            continue
        if any(each[key] != value for _, each in holders):
            if not (isinstance(value, bool) and _by_method(key, holders)):
                keys.append(key)
        elif (
            value
            and key not in usual
            and len(holders) < len(known)
            and {name for name, _ in holders} == {method}
        ):
            own.append(key)
    return keys + (own if len(own) <= _MOST_OWN else [])


def _by_method(key: str, holders: Sequence[_Known]) -> bool:
    """Whether a setting follows from the method in these runs: a default that differs, not a choice."""
    values: dict[str, list[Any]] = {}
    for method, facts in holders:
        values.setdefault(method, []).append(facts[key])
    return all(value == found[0] for found in values.values() for value in found)


def value_words(key: str, value: Any) -> str:
    """A setting's value as one would type it.

    >>> value_words("weights", ["north:2", "south:0.5"]), value_words("lr", 0.1)
    ('north:2,south:0.5', '0.1')
    """
    if value is None:
        return "full" if key == "batch_size" else "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    if isinstance(value, (list, tuple)):
        return ",".join(value_words(key, each) for each in value)
    return str(value)
