import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.errors import ConfigError
from atoll.runs.events import Event, encode, sound
from atoll.runs.loggers import TensorBoard, scalars
from atoll.runs.sinks import make

from .synthetic import log

# SQLAlchemy, of the way in which MLflow loads its tables.
pytestmark = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
)


def play(spec: str, folder: Path | None, events: list[Event]) -> None:
    reader = make(spec)
    reader.open(folder)
    for event in events:
        reader.event(event)
    reader.close()


def expected(events: list[Event]) -> dict[str, dict[int, float]]:
    """What tools should hold, written out field by field: {name: {round: value}}."""
    found: dict[str, dict[int, float]] = {}
    for event in (each for each in sound(events) if each["event"] == "round"):
        evaluation = event["evaluation"] or {"overall": {}, "clients": {}, "personal": {}}
        values = {
            "train/loss": event["loss"],
            "bytes/up": event["bytes_up"],
            "bytes/down": event["bytes_down"],
            "seconds": event["seconds"],
            **{f"test/{measure}": value for measure, value in evaluation["overall"].items()},
        }
        for kind in ("clients", "personal"):
            for measure, spread in evaluation[kind].items():
                values |= {f"{kind}/{measure}/{name}": spread[name] for name in ("mean", "p10", "p90", "min")}
        for name, value in values.items():
            if value is not None and np.isfinite(value):
                found.setdefault(name, {})[event["round"]] = value
    return found


def resumed(after: int, rounds: int, **settings: Any) -> list[Event]:
    again = [
        each
        for each in log(rounds=rounds, seed=1, **settings)
        if each.get("round", rounds) > after and each["event"] not in ("start", "partition")
    ]
    return [{"event": "resume", "time": 1_795_000_500.0, "round": after, "rounds": rounds}, *again]


def failure(kind: str) -> Event:
    return {
        "event": "error",
        "time": 1.0,
        "kind": kind,
        "message": "",
        "hint": None,
        "exit_code": 1,
        "round": 2,
    }


def test_the_names_of_numbers_are_fixed_and_the_unknown_is_left_out() -> None:
    *_, event = (e for e in log(clients=8, rounds=2, cohort=3, personalised=True) if e["event"] == "round")
    assert set(scalars(event)) == set(expected([event]))
    assert "personal/accuracy/p10" in scalars(event)
    unknown = {
        **event,
        "loss": float("nan"),
        "evaluation": {"overall": {"accuracy": None}, "clients": {}, "personal": {}},
    }
    assert set(scalars(unknown)) == {"bytes/up", "bytes/down", "seconds"}


# --- TensorBoard --------------------------------------------------------------------------------------------------


def load(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "histograms": 0})
    found.Reload()
    return found


def held(found: Any) -> dict[str, dict[int, float]]:
    return {tag: {each.step: each.value for each in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def alike(found: dict[str, dict[int, float]], wanted: dict[str, dict[int, float]]) -> None:
    """Equal, in single precision."""
    assert found.keys() == wanted.keys()
    for tag, values in wanted.items():
        assert found[tag] == pytest.approx(values, rel=1e-6), tag


@pytest.mark.parametrize("personalised", [False, True])
def test_tensorboard_reads_back_what_happened(tmp_path: Path, personalised: bool) -> None:
    events = list(log(clients=12, rounds=7, cohort=4, personalised=personalised, eval_every=3))
    play("tensorboard", tmp_path, events)
    found = load(tmp_path / "tensorboard")
    alike(held(found), expected(events))
    last = next(each for each in reversed(events) if each["event"] == "round")
    for kind, measures in last["evaluation"]["each"].items():
        for measure, values in measures.items():
            histograms = found.Histograms(f"{kind}/{measure}")
            assert [each.step for each in histograms] == [3, 6, 7]
            drawn = histograms[-1].histogram_value
            assert (drawn.num, sum(drawn.bucket)) == (12, 12)
            assert (drawn.min, drawn.max, drawn.sum) == pytest.approx((min(values), max(values), sum(values)))
            below = np.searchsorted(drawn.bucket_limit, values)
            assert np.bincount(below, minlength=len(drawn.bucket)).tolist() == drawn.bucket
    start = events[0]
    [text] = found.Tensors("hparams/config")
    table = text.tensor_proto.string_val[0].decode()
    assert [f"| {name} | {value} |" for name, value in start["config"].items()] == table.splitlines()[2:]
    assert found.SummaryMetadata("hparams/config").plugin_data.plugin_name == "text"
    assert found.Scalars("seconds")[0].wall_time == events[4]["time"]


def test_tensorboard_forgets_void_rounds(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"clients": 12, "cohort": 4, "eval_every": 3}
    past, future = list(log(rounds=9, ending=None, **settings)), resumed(5, 8, **settings)
    play("tensorboard", tmp_path, past)
    play("tensorboard", tmp_path, future)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    alike(held(load(tmp_path / "tensorboard")), expected([*past, *future]))


def test_tensorboard_can_be_watched_while_the_run_goes_on(tmp_path: Path) -> None:
    events = list(log(clients=12, rounds=4, cohort=4))
    reader = make("tensorboard")
    reader.open(tmp_path)
    for place, event in enumerate(events):
        reader.event(event)
        if event["event"] == "round":
            alike(held(load(tmp_path / "tensorboard")), expected(events[: place + 1]))
    reader.close()


def test_tensorboard_takes_a_directory_for_many_runs(tmp_path: Path) -> None:
    events = list(log(clients=8, rounds=2, cohort=3))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        play(f"tensorboard:{tmp_path / 'all'}", tmp_path / name, events)
    play(f"tensorboard:{tmp_path / 'all'}", None, events)
    places = sorted(each.name for each in (tmp_path / "all").iterdir())
    assert places[1:] == ["one", "two"]
    for place in places:
        alike(held(load(tmp_path / "all" / place)), expected(events))
    assert not any((tmp_path / "one").iterdir())


def test_tensorboard_without_a_place_says_so() -> None:
    reader = make("tensorboard")
    with pytest.raises(ConfigError, match=r"no run folder[\s\S]*tensorboard:DIR"):
        reader.open(None)
    reader.close()


def test_settings_of_any_kind_stay_one_row_each(tmp_path: Path) -> None:
    start = {"event": "start", "time": 1.0, "config": {"a": {"b": "x|y\nz"}, "c": None, "d": [1, "`"]}}
    play("tensorboard", tmp_path, [start])
    [text] = load(tmp_path / "tensorboard").Tensors("hparams/config")
    rows = text.tensor_proto.string_val[0].decode().splitlines()
    assert rows[2:] == [r"| a.b | x\|y z |", "| c | None |", r"| d | [1, '\`'] |"]


def test_measures_outside_the_unit_interval_fit_their_histogram(tmp_path: Path) -> None:
    evaluation = {"each": {"clients": {"loss": [-2.0, None, 40.0, float("nan")], "accuracy": [None] * 4}}}
    event = {
        "event": "round",
        "time": 1.0,
        "round": 1,
        "loss": None,
        "bytes_up": 1,
        "bytes_down": 1,
        "seconds": 1.0,
    }
    play("tensorboard", tmp_path, [{**event, "evaluation": evaluation}])
    found = load(tmp_path / "tensorboard")
    assert found.Tags()["histograms"] == ["clients/loss"]
    drawn = found.Histograms("clients/loss")[0].histogram_value
    assert (drawn.num, drawn.bucket[0], drawn.bucket[-1]) == (2, 1, 1)
    assert isinstance(make("tensorboard"), TensorBoard)


# --- MLflow -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of runs, whose store is made once: that takes a second."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def mlflow() -> Any:
    pytest.importorskip("sqlalchemy", reason="the extra mlflow is not installed")
    return pytest.importorskip("mlflow", reason="the extra mlflow is not installed")


def folder(runs: Path, name: str) -> Path:
    (runs / name).mkdir()
    return runs / name


def logged(mlflow: Any, store: str, name: str) -> Any:
    """The client, and the one run of that name."""
    client = mlflow.MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("atoll")
    [run] = client.search_runs([experiment.experiment_id], f"tags.`atoll.run` = '{name}'")
    return client, run


def history(client: Any, run: Any) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for name in run.data.metrics:
        for metric in sorted(
            client.get_metric_history(run.info.run_id, name), key=lambda metric: metric.timestamp
        ):
            found.setdefault(name, {})[metric.step] = metric.value
    return found


def test_mlflow_reads_back_what_happened(runs: Path, mlflow: Any) -> None:
    config = {"nested": {"deep": [1, 2]}, "od:d(key)": "x" * 7000, **{f"s{n}": n for n in range(120)}}
    events = list(
        log(clients=12, rounds=7, cohort=4, personalised=True, eval_every=3, name="whole", config=config)
    )
    play("mlflow", folder(runs, "whole"), events)
    client, run = logged(mlflow, f"sqlite:///{runs / 'mlflow.db'}", "whole")
    assert history(client, run) == expected(events)
    assert (run.info.run_name, run.info.status) == ("whole", "FINISHED")
    params = {"nested.deep": "[1, 2]", "od_d_key_": "x" * 6000, **{f"s{n}": str(n) for n in range(120)}}
    kept = {name: str(value) for name, value in events[0]["config"].items() if name not in config}
    assert run.data.params == {**kept, **params}
    assert run.data.tags["mlflow.source.git.commit"] == events[0]["commit"]
    assert run.data.tags["mlflow.source.name"] == events[0]["command"]
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"]


@pytest.mark.parametrize(
    ("ending", "status"),
    [("DivergedError", "FAILED"), ("Interrupted", "KILLED"), ("Terminated", "KILLED"), (None, "RUNNING")],
)
def test_mlflow_knows_how_a_run_ended(runs: Path, mlflow: Any, ending: str | None, status: str) -> None:
    name = f"ended-{ending}"
    events = list(log(clients=8, rounds=2, cohort=3, name=name, ending=None))
    play("mlflow", folder(runs, name), [*events, *([failure(ending)] if ending else [])])
    _, run = logged(mlflow, f"sqlite:///{runs / 'mlflow.db'}", name)
    assert run.info.status == status


def test_mlflow_goes_on_with_the_run_that_was_begun(runs: Path, mlflow: Any) -> None:
    settings: dict[str, Any] = {"clients": 8, "cohort": 3, "name": "it's continued", "eval_every": 2}
    place = folder(runs, "it's continued")
    past, future = list(log(rounds=6, ending=None, **settings)), resumed(4, 8, **settings)
    play("mlflow", place, [*past, failure("Interrupted")])
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{runs / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("atoll").experiment_id
    [before] = client.search_runs([experiment], 'attributes.run_name = "it\'s continued"')
    reader = make("mlflow")
    reader.open(place)
    reader.event(future[0])
    assert client.get_run(before.info.run_id).info.status == "RUNNING"
    for event in future[1:]:
        reader.event(event)
    reader.close()
    [after] = client.search_runs([experiment], 'attributes.run_name = "it\'s continued"')
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert {name: set(values) for name, values in history(client, after).items()} == {
        name: set(values) for name, values in expected([*past, *future]).items()
    }
    assert after.data.metrics == {
        name: values[max(values)] for name, values in expected([*past, *future]).items()
    }


def test_mlflow_begins_a_run_that_it_has_not_seen_with_its_settings(runs: Path, mlflow: Any) -> None:
    settings: dict[str, Any] = {"clients": 8, "cohort": 3, "name": "late"}
    place = folder(runs, "late")
    past, future = list(log(rounds=6, ending=None, **settings)), resumed(4, 8, **settings)
    (place / "events.jsonl").write_bytes(b"".join(map(encode, [*past, future[0]])))
    play("mlflow", place, future)
    client, run = logged(mlflow, f"sqlite:///{runs / 'mlflow.db'}", "late")
    assert history(client, run) == expected(future)
    assert run.data.params == {name: str(value) for name, value in past[0]["config"].items()}


def test_mlflow_writes_to_another_store_and_leaves_the_current_one_alone(
    tmp_path: Path, mlflow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("ATOLL_RUNS", str(tmp_path / "runs"))
    store = f"sqlite:///{tmp_path / 'path.db'}"
    events = list(log(clients=8, rounds=2, cohort=3, name=""))
    play(f"mlflow:{store}", None, events)
    client = mlflow.MlflowClient(tracking_uri=store)
    [run] = client.search_runs([client.get_experiment_by_name("atoll").experiment_id])
    assert history(client, run) == expected(events)
    assert run.info.run_name == run.data.tags["atoll.run"] != ""
    assert mlflow.active_run() is None
    assert mlflow.get_tracking_uri() == "sqlite:///elsewhere.db"
    assert not Path("elsewhere.db").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["path.db"]


def test_mlflow_reports_nothing_home_and_respects_what_is_set(
    monkeypatch: pytest.MonkeyPatch, mlflow: Any
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    make("mlflow")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "false"
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    make("mlflow")
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
