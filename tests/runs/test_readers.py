import csv
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import ConfigError, MissingExtraError
from atoll.runs.csvs import Csv, clients_csv, metrics_csv
from atoll.runs.events import Event, encode, read, sound
from atoll.runs.readers import Reader
from atoll.runs.sinks import make

from .synthetic import log

BASE = ["round", "seconds", "clients", "refused", "dropped", "train_loss", "bytes_up", "bytes_down"]
SPREAD = ["mean", "pooled", "std", "p10", "median", "p90", "min", "max"]


def parse(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def rounds(events: list[Event]) -> list[Event]:
    return [each for each in events if each["event"] == "round"]


def plain_round(number: int, **fields: Any) -> Event:
    found = {
        "event": "round",
        "time": 1.0,
        "round": number,
        "cohort": [0],
        "dropped": [],
        "refused": {},
        "loss": 1.0,
    }
    return {
        **found,
        "bytes_up": 8,
        "bytes_down": 9,
        "seconds": 0.5,
        "clients": {},
        "evaluation": None,
        **fields,
    }


def append(folder: Path, events: list[Event]) -> None:
    with open(folder / "events.jsonl", "ab") as file:
        file.writelines(map(encode, events))


# --- making -------------------------------------------------------------------------------------------------------


def test_importing_readers_imports_no_tool_and_no_torch() -> None:
    heavy = "{'torch', 'tensorboard', 'mlflow', 'google'} & set(sys.modules)"
    program = f"import sys, atoll.runs.bus, atoll.runs.sinks, atoll.runs.recorder; print({heavy})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "set()"


def test_an_unknown_reader_is_named_with_what_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"unknown reader 'tensorbord'[\s\S]*did you mean 'tensorboard'"):
        make("tensorbord")
    with pytest.raises(ConfigError, match=r"known: csv, mlflow, tensorboard"):
        make("wandb:project")


@pytest.mark.parametrize("spec", ["csv:here", "csv:", "tensorboard:", "mlflow:"])
def test_a_reader_with_a_wrong_argument_is_an_error(spec: str) -> None:
    with pytest.raises(ConfigError, match=f"reader '{spec}'"):
        make(spec)


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("tensorboard", "tensorboard.compat.proto.event_pb2"),
        ("tensorboard:there", "tensorboard.summary.writer.record_writer"),
        ("mlflow", "mlflow"),
    ],
)
def test_a_missing_package_is_an_error_when_the_reader_is_made(
    monkeypatch: pytest.MonkeyPatch, spec: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    name = spec.partition(":")[0]
    with pytest.raises(MissingExtraError, match=rf'needs {name}[\s\S]*pip install "atoll\[{name}\]"'):
        make(spec)


def test_a_reader_does_nothing_unless_it_is_told_to() -> None:
    reader = Reader()
    reader.open(None)
    reader.event({"event": "start"})
    reader.close()
    assert isinstance(make("csv"), Csv)


# --- metrics.csv --------------------------------------------------------------------------------------------------


def cell(value: float | None) -> str:
    return "" if value is None else repr(value)


@pytest.mark.parametrize("personalised", [False, True])
@pytest.mark.parametrize("classes", [10, None])
def test_metrics_say_what_the_events_say(personalised: bool, classes: int | None) -> None:
    events = list(
        log(clients=12, rounds=9, cohort=4, personalised=personalised, classes=classes, eval_every=4)
    )
    lines = parse(metrics_csv(events))
    measures = ["loss"] if classes is None else ["accuracy", "loss"]
    kinds = ["clients", "personal"] if personalised else ["clients"]
    spreads = [f"{kind}_{measure}_{name}" for kind in kinds for measure in measures for name in SPREAD]
    assert list(lines[0]) == [*BASE, *measures, *spreads]
    assert len(lines) == 9
    for line, event in zip(lines, rounds(events), strict=True):
        assert line["round"] == str(event["round"])
        for name, field in {"train_loss": "loss", "seconds": "seconds", "bytes_up": "bytes_up"}.items():
            assert line[name] == repr(event[field])
        for name, field in {"clients": "cohort", "refused": "refused", "dropped": "dropped"}.items():
            assert line[name] == str(len(event[field]))
        evaluation = event["evaluation"] or {}
        for measure in measures:
            assert line[measure] == cell(evaluation.get("overall", {}).get(measure))
            for kind in kinds:
                spread = evaluation.get(kind, {}).get(measure, {})
                for name in SPREAD:
                    assert line[f"{kind}_{measure}_{name}"] == cell(spread.get(name))


def test_what_is_not_known_or_not_finite_is_empty() -> None:
    spread = {"mean": 0.5, "p10": float("nan"), "median": None}
    evaluation = {
        "overall": {"=accuracy": float("inf")},
        "clients": {"accuracy": spread},
        "personal": {},
        "each": {},
    }
    events = [plain_round(1, loss=None), plain_round(2, loss=float("nan"), evaluation=evaluation)]
    first, second = parse(metrics_csv(events))
    assert first["train_loss"] == second["train_loss"] == second["'=accuracy"] == ""
    assert [second[f"clients_accuracy_{name}"] for name in SPREAD] == ["0.5", *[""] * 7]


def test_a_run_without_rounds_has_a_header() -> None:
    assert metrics_csv([]) == ",".join(BASE) + "\r\n"


def test_metrics_are_current_after_every_round(tmp_path: Path) -> None:
    """Whatever has been told, the file is that of the events so far; it is not rewritten where a line will do."""
    events = list(log(clients=12, rounds=8, cohort=4, eval_every=3))
    reader, file = Csv(), tmp_path / "metrics.csv"
    reader.open(tmp_path)
    inodes = []
    for place, event in enumerate(events):
        reader.event(event)
        assert file.read_bytes().decode() == metrics_csv(events[: place + 1])
        if event["event"] == "round":
            inodes.append(file.stat().st_ino)
    reader.close()
    assert inodes[0] == inodes[1] != inodes[2]  # the first evaluation adds columns
    assert len(set(inodes[2:])) == 1


def test_a_run_that_goes_on_loses_its_void_rounds(tmp_path: Path) -> None:
    past = list(log(clients=12, rounds=7, cohort=4, eval_every=3, ending=None))
    append(tmp_path, past)
    (tmp_path / "metrics.csv").write_text("1,2,3,a line that was cut o")
    reader, file = Csv(), tmp_path / "metrics.csv"
    reader.open(tmp_path)
    assert file.read_bytes().decode() == metrics_csv(past)
    again = {"event": "resume", "time": 2.0, "round": 2, "rounds": 8}
    future = [
        again,
        *(e for e in log(clients=12, rounds=8, cohort=4, eval_every=3, seed=1) if e.get("round", 0) > 2),
    ]
    for event in future:
        append(tmp_path, [event])
        reader.event(event)
        if event is again:
            assert file.read_bytes().decode() == metrics_csv(sound([*past, again]))
            assert "accuracy" not in file.read_text()  # only void rounds had been evaluated
    reader.close()
    assert file.read_bytes().decode() == metrics_csv(read(tmp_path / "events.jsonl").events)
    assert [line["round"] for line in parse(file.read_text())] == [str(n) for n in range(1, 9)]


def test_rounds_that_the_file_already_had_when_it_was_opened_count_once(tmp_path: Path) -> None:
    events = list(log(clients=12, rounds=5, cohort=4))
    append(tmp_path, events)
    reader = Csv()
    reader.open(tmp_path)
    for event in events:
        reader.event(event)
    reader.close()
    assert (tmp_path / "metrics.csv").read_bytes().decode() == metrics_csv(events)


def test_metrics_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="no run folder"):
        make("csv").open(None)


# --- clients.csv --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("personalised", [False, True])
def test_clients_say_what_the_events_say(personalised: bool) -> None:
    events = list(
        log(
            clients=15, rounds=12, cohort=5, personalised=personalised, refused=0.3, dropped=0.1, eval_every=2
        )
    )
    lines = parse(clients_csv(events))
    own = ["personal_accuracy", "personal_loss"] if personalised else []
    header = ["client", "name", "samples", "rounds", "refused", "last_round", "train_loss", "norm", "cosine"]
    assert list(lines[0]) == [*header, "accuracy_first", "accuracy", "loss_first", "loss", *own]
    partition = next(each for each in events if each["event"] == "partition")
    judged = [each for each in rounds(events) if each["evaluation"]]
    assert [line["client"] for line in lines] == [str(k) for k in range(15)]
    for k, line in enumerate(lines):
        took = [each for each in rounds(events) if k in each["cohort"]]
        assert (line["name"], line["samples"]) == (partition["names"][k], str(partition["sizes"][k]))
        assert line["rounds"] == str(len(took))
        assert line["refused"] == str(sum(str(k) in each["refused"] for each in rounds(events)))
        assert line["last_round"] == (str(took[-1]["round"]) if took else "")
        for name, column in {"train_loss": "loss", "norm": "norm", "cosine": "cosine"}.items():
            values = [each["clients"][column][each["cohort"].index(k)] for each in took]
            assert line[name] == (repr(values[-1]) if took else "")
        for measure in ("accuracy", "loss"):
            values = [each["evaluation"]["each"]["clients"][measure][k] for each in judged]
            assert (line[f"{measure}_first"], line[measure]) == (repr(values[0]), repr(values[-1]))
            if personalised:
                value = judged[-1]["evaluation"]["each"]["personal"][measure][k]
                assert line[f"personal_{measure}"] == repr(value)


def test_unknown_values_keep_the_last_known_and_absent_columns_stay_empty() -> None:
    each = {"clients": {"accuracy": [None, 0.25]}}
    evaluation = {"overall": {}, "clients": {}, "personal": {}, "each": each}
    events = [
        {"event": "partition", "names": None, "sizes": None, "judged": [7, 9]},
        plain_round(1, cohort=[3, 7], clients={"loss": [0.5, 0.75]}, evaluation=evaluation),
        plain_round(2, cohort=[3], clients={"loss": [None]}, refused={"5": "late"}, evaluation=evaluation),
    ]
    lines = parse(clients_csv(events))
    assert [line["client"] for line in lines] == ["3", "5", "7", "9"]  # those seen, as the events list nobody
    assert [line["rounds"] for line in lines] == ["2", "0", "1", "0"]
    assert [line["refused"] for line in lines] == ["0", "1", "0", "0"]
    assert [line["last_round"] for line in lines] == ["2", "", "1", ""]
    assert [line["train_loss"] for line in lines] == ["0.5", "", "0.75", ""]
    assert [line["accuracy"] for line in lines] == ["", "", "", "0.25"]
    assert {line["norm"] + line["name"] + line["samples"] for line in lines} == {""}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_name_survives_and_none_is_a_formula(names: list[str]) -> None:
    events = [{"event": "partition", "names": names, "sizes": None, "judged": []}]
    found = [line["name"] for line in parse(clients_csv(events))]
    for name, there in zip(names, found, strict=True):
        assert not there.startswith(("=", "+", "-", "@", "\t", "\r"))
        assert there == (f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name)


def test_a_name_like_a_formula_gets_an_apostrophe() -> None:
    names = [
        '=HYPERLINK("http://there","x")',
        "+1",
        "-1",
        "@sum",
        "\tx",
        "a,b",
        'say "hi"',
        "two\nlines",
        "Zoë",
    ]
    text = clients_csv([{"event": "partition", "names": names, "sizes": list(range(9)), "judged": []}])
    assert '0,"\'=HYPERLINK(""http://there"",""x"")",0,0,0,,,,\r\n' in text
    assert [line["name"] for line in parse(text)] == [*(f"'{name}" for name in names[:5]), *names[5:]]
