"""One reader for every little text: ``name:argument,argument + name``, lists, pairs and ``key=value``.

Whoever takes such a text declares what may stand in it. What is wrong with a text is then said in the same words
everywhere: which part of which text, and what would fit. Whatever reads raises ConfigError. `what` is how errors call
the text: "partition", "joins =", "--set".
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from atoll.errors import ConfigError, suggest

__all__ = [
    "Call", "Parameter", "amount", "assignment", "chain", "flag", "items", "many", "number", "pair", "pairs", "parse",
    "rest", "unknown", "usage", "values", "whole", "word",
]  # fmt: skip


# --- arguments ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """An argument: what it is called, what it must be in words, and what makes the value of a text.

    `convert` raises ValueError or KeyError. `many` takes all arguments that are left; `raw` all that follows the colon.
    """

    name: str
    wants: str
    convert: Callable[[str], Any]
    optional: bool = False
    many: bool = False
    raw: bool = False

    def read(self, text: str, place: str, hint: str) -> Any:
        """The value of a text that stands at `place`."""
        if not text:
            raise ConfigError(f"{place}: {self.name} is empty", hint=hint)
        try:
            return self.convert(text)
        except (ValueError, KeyError):
            message = f"{place}: {self.name} = {text!r} is not {self.wants}"
            raise ConfigError(message, hint=hint) from None


_HOLDS = {"above": operator.gt, "at_least": operator.ge, "at_most": operator.le, "below": operator.lt}


def number(name: str, *, optional: bool = False, **bounds: float) -> Parameter:
    """A number `above`, `at_least`, `at_most`, `below` a bound; an infinite one too where no bound is against it."""
    return _numeric(name, "a number", float, optional, bounds)


def whole(name: str, *, optional: bool = False, **bounds: float) -> Parameter:
    """A whole number, with bounds as `number` has them."""
    return _numeric(name, "a whole number", int, optional, bounds)


def amount(name: str) -> Parameter:
    """So many, a whole number above 0 (an int), or a share, a number between 0 and 1 (a float).

    >>> [amount("clients").convert(text) for text in ("6", "0.1")]
    [6, 0.1]
    """

    def convert(text: str) -> int | float:
        value = float(text)
        if 0 < value < 1:
            return value
        if not value >= 1 or not value.is_integer():
            raise ValueError
        return int(value)

    return Parameter(name, "a whole number above 0 or a share below 1", convert)


def flag(name: str, *, optional: bool = False) -> Parameter:
    """True or false."""
    return Parameter(
        name, "true or false", lambda text: {"true": True, "false": False}[text.lower()], optional
    )


def word(name: str, *, optional: bool = False) -> Parameter:
    """A text without commas."""
    return Parameter(name, "text", str, optional)


def rest(name: str, *, optional: bool = False) -> Parameter:
    """All that follows the colon, as it stands, with commas and further colons: a path, an address."""
    return Parameter(name, "text", str, optional, raw=True)


def many(parameter: Parameter) -> Parameter:
    """All arguments that are left, each one as `parameter` has it; a tuple."""
    return replace(parameter, many=True)


def _numeric(
    name: str, kind: str, make: Callable[[str], float], optional: bool, bounds: Mapping[str, float]
) -> Parameter:
    checks = [(_HOLDS[each], bound) for each, bound in bounds.items()]

    def convert(text: str) -> float:
        value = make(text)
        if value == value and all(holds(value, bound) for holds, bound in checks):  # not NaN
            return value
        raise ValueError

    words = " and ".join(f"{each.replace('_', ' ')} {bound:g}" for each, bound in bounds.items())
    return Parameter(name, f"{kind} {words}".rstrip(), convert, optional)


# --- names with arguments -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """A name and what follows its colon (None without one), out of `text`, which errors call `what`."""

    name: str
    given: str | None
    what: str = field(repr=False)
    text: str = field(repr=False)

    def read(self, known: Mapping[str, Sequence[Parameter]]) -> dict[str, Any]:
        """The arguments that are there, by the names that `known` has for them; also those written ``name=value``.

        >>> known = {"iid": (), "dirichlet": (number("alpha", above=0), whole("min_size", optional=True))}
        >>> parse("dirichlet:0.3", "partition").read(known)
        {'alpha': 0.3}
        >>> parse("dirichlet:0", "partition").read(known)
        Traceback (most recent call last):
        atoll.errors.ConfigError: partition 'dirichlet:0': alpha = '0' is not a number above 0
          hint: write dirichlet:ALPHA[,MIN_SIZE]
        """
        if self.name not in known:
            raise unknown(self.what, self.name, known, self.text)
        parameters = known[self.name]
        place, hint = f"{self.what} {self.text!r}", f"write {usage(self.name, parameters)}"
        found: dict[str, Any] = {}
        for parameter, text in self._arguments(parameters, place, hint):
            if parameter.name in found and not parameter.many:
                raise ConfigError(f"{place}: {parameter.name} is given twice", hint=hint)
            value = parameter.read(text, place, hint)
            found[parameter.name] = (*found.get(parameter.name, ()), value) if parameter.many else value
        absent = [each.name for each in parameters if not each.optional and each.name not in found]
        if absent:
            raise ConfigError(f"{place}: {self.name} needs {' and '.join(absent)}", hint=hint)
        return found

    def _arguments(
        self, parameters: Sequence[Parameter], place: str, hint: str
    ) -> Iterator[tuple[Parameter, str]]:
        """Each argument's text, with the parameter that it is for."""
        if self.given is None:
            return
        if any(each.raw for each in parameters):
            yield parameters[0], self.given
            return
        by_name = {each.name: each for each in parameters}
        for position, part in enumerate(self.given.split(",")):
            name, equals, text = (each.strip() for each in part.partition("="))
            if equals and name not in by_name:
                message = f"{place}: {self.name} has no setting {name!r}"
                raise ConfigError(message, hint=suggest(name, by_name) if by_name else hint)
            if equals:
                yield by_name[name], text
            elif position < len(parameters):
                yield parameters[position], name
            elif parameters and parameters[-1].many:
                yield parameters[-1], name
            else:
                most = len(parameters)
                said = f"at most {most} argument{'s' * (most > 1)}" if most else "no arguments"
                raise ConfigError(f"{place}: {self.name} takes {said}", hint=hint)


def parse(text: str, what: str) -> Call:
    """The name and the arguments of ``name:argument,argument``.  Raises nothing: `Call.read` knows what may be there.

    >>> parse("mlp:128,64", "model")
    Call(name='mlp', given='128,64')
    """
    return chain(text, what)[0]


def chain(text: str, what: str, join: str | None = None) -> list[Call]:
    """Several calls with `join` in between; one without it. The + of a number, as in 1e+3, joins nothing.

    >>> chain("iid + permuted:3,0.75", "partition", "+")
    [Call(name='iid', given=None), Call(name='permuted', given='3,0.75')]
    """
    found = []
    parts = [text] if join is None else re.split(rf"(?<![0-9.][eE]){re.escape(join)}", text)
    for part in parts if join is None else [each.strip() for each in parts]:
        name, colon, given = part.partition(":")
        found.append(Call(name.strip(), given if colon else None, what, text))
    return found


def unknown(what: str, name: str, known: Iterable[str], text: str = "") -> ConfigError:
    """The error for a name, in a text, that is none of those known."""
    if not name:
        return ConfigError(f"{what} {text!r}: a name is missing", hint=suggest(name, known))
    where = f" in {text!r}" if text.strip() not in ("", name) else ""
    return ConfigError(f"unknown {what} {name!r}{where}", hint=suggest(name, known))


def usage(name: str, parameters: Sequence[Parameter]) -> str:
    """How to write a call, such as ``dirichlet:ALPHA[,MIN_SIZE]``."""
    words = [(each.name.upper() + ",..." * each.many, each.optional) for each in parameters]
    needed = ",".join(each for each, optional in words if not optional)
    free = ",".join(each for each, optional in words if optional)
    start = f"{name}:{needed}" if needed else name
    return f"{start}[{',' if needed else ':'}{free}]" if free else start


# --- lists, pairs, key and value ------------------------------------------------------------------------------------


def items(text: str, what: str) -> list[str]:
    """The parts of a text with commas in between, none of them empty.

    >>> items("0.01, 0.1", "--grid lr =")
    ['0.01', '0.1']
    """
    parts = [part.strip() for part in text.split(",")]
    if "" in parts:
        where = f": part {parts.index('') + 1} of {len(parts)}" if len(parts) > 1 else ""
        raise ConfigError(f"{what} {text!r}{where} is empty", hint="write values with one comma in between")
    return parts


def values(text: str, what: str, parameter: Parameter) -> list[Any]:
    """A list with commas, each part read as `parameter` has it.

    >>> values("1, 0.5", "rates =", number("rate", above=0, at_most=1))
    [1.0, 0.5]
    """
    name = parameter.name.upper()
    return [
        parameter.read(part, f"{what} {text!r}", f"write {name},{name},...") for part in items(text, what)
    ]


def pair(
    text: str, what: str, join: str, left: Parameter, right: Parameter, example: str = ""
) -> tuple[Any, Any]:
    """Two values with `join` in between; an error shows the `example`.

    >>> pair("accuracy:0.97", "target", ":", word("measure"), number("value"))
    ('accuracy', 0.97)
    """
    place, form = f"{what} {text!r}", f"{left.name.upper()}{join}{right.name.upper()}"
    first, middle, second = (each.strip() for each in text.partition(join))
    hint = f"write {form}" + (f", such as {example}" if example else "")
    if not middle:
        raise ConfigError(f"{place} is not {form}", hint=hint)
    return left.read(first, place, hint), right.read(second, place, hint)


def pairs(
    text: str, what: str, join: str, left: Parameter, right: Parameter, example: str = ""
) -> list[tuple[Any, Any]]:
    """A list with commas, each part as `pair` has it.

    >>> pairs("6@20, 0.1@40", "joins =", "@", amount("clients"), whole("round", at_least=2))
    [(6, 20), (0.1, 40)]
    """
    parts = items(text, what)
    where = what if len(parts) == 1 else f"{what} {text!r}:"
    return [pair(part, where, join, left, right, example) for part in parts]


def assignment(text: str, what: str, form: str = "KEY=VALUE", example: str = "lr=0.05") -> tuple[str, str]:
    """Key and value, which may be empty.

    >>> assignment("lr = 0.1", "--set")
    ('lr', '0.1')
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise ConfigError(f"{what} {text!r} is not {form}", hint=f"for example {what} {example}")
    return key, value
