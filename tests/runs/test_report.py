"""The page as one file: nothing from outside, all of the data, and no way for the data to be more than data."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from atoll.errors import RunError
from atoll.runs import report
from atoll.runs.compare import Comparison
from atoll.runs.digest import compact

from .synthetic import log

HOSTILE = ["</script><script>bad()</script>", "<!--<script>", "a\u2028b & <b>c</b> \\ \"quoted\" 'too' ]]>"]


class Elements(HTMLParser):
    """Every element of a page, with its attributes and what is in it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.inside = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][2].append(data)

    def texts(self, tag: str, **wanted: str) -> list[str]:
        return [
            "".join(texts)
            for name, attrs, texts in self.found
            if name == tag and wanted.items() <= attrs.items()
        ]


def data_of(page: str) -> Any:
    (text,) = Elements(page).texts("script", id="atoll-data")
    return msgspec.json.decode(text)


def test_the_data_comes_back() -> None:
    events = list(log(rounds=12, names=HOSTILE * 10))
    data = data_of(report.page("a title", [events]))
    assert data["title"] == "a title"
    assert [run["name"] for run in data["runs"]] == ["2026-11-21_081233-fedavg-a3f1"]
    assert data["runs"][0]["events"] == msgspec.json.decode(msgspec.json.encode(compact(events)))
    assert data["comparison"] is None


def test_text_from_a_log_cannot_end_its_element() -> None:
    events = list(log(rounds=4, names=HOSTILE * 10, method="</script><img src=x onerror=bad()>"))
    harmless = Elements(report.page("digits", [list(log(rounds=4))]))
    page = Elements(report.page("</title></script><script>bad()</script>", [events]))
    assert [tag for tag, _, _ in page.found] == [tag for tag, _, _ in harmless.found]
    names = next(
        e for e in data_of(report.page("x", [events]))["runs"][0]["events"] if e["event"] == "partition"
    )
    assert names["names"][:3] == HOSTILE


def test_nothing_comes_from_outside() -> None:
    page = report.page("digits", [list(log(rounds=4))])
    elements = Elements(page)
    for tag, attributes, _ in elements.found:
        assert not attributes.keys() & {"src", "srcset", "action", "style", "onclick"}, (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert tag not in ("link", "iframe", "object", "embed", "base")
    code = "\n".join(elements.texts("script") + elements.texts("style"))
    code = re.sub(r"/\*!.*?\*/", "", code, flags=re.S)  # the notice of the chart library names its home
    assert not re.findall(r"\w+://", code)
    assert not re.findall(r"url\(|@import|\bimport\(|\beval\(|new Function|innerHTML|document\.write", code)


def test_the_policy_lets_in_what_is_in_the_file_and_nothing_else() -> None:
    elements = Elements(report.page("digits", [list(log(rounds=4))]))
    ((policy,),) = [
        [a["content"]] for tag, a, _ in elements.found if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    (style,) = elements.texts("style")
    (script,) = [
        "".join(texts) for tag, attributes, texts in elements.found if tag == "script" and not attributes
    ]
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_several_runs_and_their_comparison(tmp_path: Path) -> None:
    runs = [
        list(log(rounds=6, name=f"2026-{method}-{seed}", method=method, seed=seed))
        for method in ("fedavg", "fedprox")
        for seed in range(2)
    ]
    comparison = Comparison.of(runs).to_dict()
    data = data_of(report.page("two methods", runs, comparison))
    assert data["comparison"] == msgspec.json.decode(msgspec.json.encode(comparison))
    names = {run["name"] for run in data["runs"]}
    assert names == {name for group in data["comparison"]["groups"] for name in group["runs"]}


def test_a_log_without_a_beginning_is_a_page_too() -> None:
    data = data_of(report.page("odd", [[], [{"event": "round", "time": 0.0, "round": 1}]]))
    assert [run["name"] for run in data["runs"]] == ["run 1", "run 2"]


def test_it_is_written_as_a_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.html"
    report.write(file, "digits", [list(log(rounds=2))])
    whole = file.read_text("utf-8")
    assert whole.startswith("<!doctype html>")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunError, match="cannot write the report"):
        report.write(file, "digits", [list(log(rounds=3))])
    assert file.read_text("utf-8") == whole
    with pytest.raises(RunError, match="cannot write the report"):
        report.write(tmp_path / "nowhere" / "report.html", "digits", [])


def test_every_part_of_the_page_ships() -> None:
    html = (report.FILES / "index.html").read_text("utf-8")
    asked = set(re.findall(r'(?:src|href)="([^"#]+)"', html))
    there = {path.relative_to(report.FILES).as_posix() for path in report.FILES.rglob("*") if path.is_file()}
    assert asked == there - {"index.html", "vendor/LICENSE-uPlot.txt"}
