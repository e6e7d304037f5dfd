"""Files of devices: what may stand in them, and how what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.clock import Devices, devices
from atoll.errors import AtollError, ConfigError, DataError

CSV = """\
client,speed,download,upload,active,inactive,finish_time
b, 50, 2e6, 1e6, 0 40, 10 50, 100
a, 100, 1e6, 5e5, , ,
"""
BEHAVIOUR = {  # an entry of client_behave_trace, from FedScale's documentation of the format
    "duration": 211625, "finish_time": 518400, "model": "CPH1801",
    "inactive": [65881, 133574, 208292, 276575, 295006, 356236, 400906, 475099],
    "active": [12788, 100044, 188992, 271372, 276663, 333385, 375301, 404365],
}  # fmt: skip
BOTH = np.arange(2)


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def two(path: Any, **given: Any) -> Devices:
    return devices(path, **{"clients": 2, "names": ["a", "b"]} | given)


def check_example(made: Devices) -> None:
    found = made.profiles(BOTH)
    assert found.speed.tolist() == [100, 50] and found.download.tolist() == [1e6, 2e6]
    assert found.upload.tolist() == [5e5, 1e6] and found.latency.tolist() == [0.05, 0.05]
    assert made.until(BOTH, 145.0).tolist() == [np.inf, 150] and made.returns(BOTH, 110.0).tolist() == [
        110,
        140,
    ]


def test_csv_json_and_a_mapping_say_the_same(tmp_path: Path) -> None:
    entries = {
        "b": {
            "speed": 50,
            "download": 2e6,
            "upload": 1e6,
            "active": [0, 40],
            "inactive": [10, 50],
            "finish_time": 100,
        },
        "a": {"speed": 100, "download": 1e6, "upload": 5e5},
    }
    rows = [{"client": name, **fields} for name, fields in entries.items()]
    for path in (
        written(tmp_path, "devices.csv", CSV),
        written(tmp_path, "semi.CSV", "\ufeff" + CSV.replace(",", ";")),
        written(tmp_path, "blank.csv", "\n" + CSV.replace("\n", "\r\n\r\n")),
        written(tmp_path, "devices.json", entries),
        written(tmp_path, "list.json", rows),
    ):
        check_example(two(path))
        check_example(two(str(path)))
        assert two(str(path)).text == str(path)
    check_example(two(entries))


def test_files_and_generators_are_joined(tmp_path: Path) -> None:
    speeds = written(tmp_path, "speeds.csv", "client,speed,memory\n0,5,1e9\n1,7,inf\n")
    hours = written(tmp_path, "hours.json", {"0": BEHAVIOUR, "1": BEHAVIOUR})
    made = devices(f"{speeds} + {hours} + failing:0.25", clients=2)
    found = made.profiles(BOTH)
    assert found.speed.tolist() == [5, 7] and found.failure.tolist() == [0.25, 0.25]
    assert found.memory.tolist() == [1e9, np.inf] and not made.available(BOTH, 0.0).any()
    assert devices(f"lognormal:1 + {hours}", clients=2).profiles(BOTH).speed.tolist() != [100, 100]


def test_fedscale_s_hours_repeat_after_finish_time() -> None:
    made = devices({"7": BEHAVIOUR}, clients=1, names=[7])
    one = BOTH[:1]
    for time, there, until, returns in (
        (0.0, False, 0.0, 12788.0),
        (12788.0, True, 65881.0, 12788.0),
        (276600.0, False, 276600.0, 276663.0),
        (475099.0, False, 475099.0, 518400.0 + 12788),
        (518400.0 * 3 + 404365, True, 518400.0 * 3 + 475099, 518400.0 * 3 + 404365),
    ):
        found = made.available(one, time), made.until(one, time), made.returns(one, time)
        assert found == (there, until, returns)


def test_without_finish_time_windows_come_once() -> None:
    made = devices({"0": {"active": [5], "inactive": [10]}, "1": {"active": [], "inactive": []}}, clients=2)
    assert made.returns(BOTH, 0.0).tolist() == [5, np.inf] and made.until(BOTH, 7.0).tolist() == [10, 7]
    assert made.returns(BOTH, 10.0).tolist() == [np.inf, np.inf]


def test_a_device_without_windows_is_always_there_whatever_its_period() -> None:
    made = devices(
        {"0": {"finish_time": 50}, "1": {"active": [5], "inactive": [10], "finish_time": 50}}, clients=2
    )
    assert made.until(BOTH, 57.0).tolist() == [np.inf, 60] and made.returns(BOTH, 61.0).tolist() == [61, 105]


def test_clients_draw_rows_of_a_file_that_knows_no_clients(tmp_path: Path) -> None:
    lines = "speed,communication,active,inactive,finish_time\n10,80,0,50,100\n20,160,50,100,100\n30,240,,,\n"
    path = written(tmp_path, "phones.csv", lines)
    many = np.arange(30_000)
    made = devices(f"drawn:{path}", clients=len(many), seed=3)
    found = made.profiles(many)
    assert (found.download == found.speed * 1000).all()  # what one row says stays together
    assert (made.available(many, 10.0) == (found.speed != 20)).all()
    assert [(found.speed == speed).mean() for speed in (10, 20, 30)] == pytest.approx([1 / 3] * 3, abs=0.012)
    assert (devices(f"drawn:{path}", clients=len(many), seed=4).profiles(many).speed != found.speed).any()
    hours = written(tmp_path, "hours.json", [{"active": [0], "inactive": [9]}, {}, {}])
    apart = devices(f"drawn:{written(tmp_path, 's.json', [{'speed': 1}, {'speed': 2}, {'speed': 3}])} + drawn:{hours}",
                    clients=len(many))  # fmt: skip
    away = ~apart.available(many, 10.0)
    assert [away[apart.profiles(many).speed == speed].mean() for speed in (1, 2, 3)] == pytest.approx(
        [1 / 3] * 3, abs=0.03
    )


# --- what is wrong --------------------------------------------------------------------------------------------------

TEXTS = [
    ("", "devices '': a name is missing"),
    ("equal +", r"devices 'equal \+': a name is missing"),
    ("lognromal:1", r"unknown devices 'lognromal'[^\n]*\n  hint: did you mean 'lognormal'\?; or the path of a"),
    ("lognormal", "lognormal needs sigma"),
    ("lognormal:-1", "sigma = '-1' is not a number at least 0 and at most 10"),
    ("exponential:0", "mean = '0' is not a number at least 0.001"),
    ("exponential:inf", "mean = 'inf' is not a number at least 0.001 and below inf"),
    ("diurnal:0", "share = '0' is not a number above 0 and at most 1"),
    ("diurnal:0.5,nan", "period = 'nan' is not a number"),
    ("markov:5", "markov needs off"),
    ("markov:5,1e-9", "off = '1e-9' is not a number at least 0.001"),
    ("failing:1", "rate = '1' is not a number at least 0 and below 1"),
    ("classes:phone=0.6,laptop=0.3", r"the shares add up to 0\.9, not to 1\n  hint: write classes:phone=0\.7"),
    ("classes:phone=0.5,phone=0.5", "the class phone is there twice"),
    ("classes:fone=1", r"unknown class of devices 'fone'[^\n]*\n  hint: did you mean 'phone'"),
    ("classes:phone", "'phone' is not CLASS=SHARE"),
    ("classes", "classes needs class=share"),
    ("equal + lognormal:1", "equal and lognormal:1 both say the speed of devices"),
    ("diurnal:0.5 + markov:1,1", "diurnal:0.5 and markov:1,1 both say the hours of devices"),
    ("failing:0.1 + failing:0.2", "failing:0.1 and failing:0.2 both say the failure of devices"),
    (5, "devices = 5 is no text"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), TEXTS)
def test_a_wrong_text_is_said_to_be_wrong(text: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        devices(text, clients=2)


FILES = [
    ("d.csv", "client,speed\na,0\nb,1\n", r"d\.csv, line 2: speed = 0 is not above 0"),
    ("d.csv", "client,speed\na,1\nb,-3\n", r"d\.csv, line 3: speed = -3 is not above 0"),
    ("d.csv", "client,download,upload\na,1,1\nb,1,inf\n", "line 3: upload = inf is not above 0"),
    ("d.csv", "client,speed\na,1\nb,nan\n", "line 3: speed = nan is not above 0"),
    ("d.csv", "client,speed\na,1\nb,fast\n", "line 3: speed = 'fast' is not a number"),
    ("d.csv", "client,speed\na,1\nb,\n", "line 3: speed is empty"),
    ("d.csv", "client,latency\na,1\nb,-1\n", "line 3: latency = -1 is not 0 or more"),
    ("d.csv", "client,failure\na,1\nb,1.5\n", r"line 3: failure = 1\.5 is not from 0 to 1"),
    ("d.csv", "client,memory\na,1\nb,0\n", "line 3: memory = 0 is not above 0"),
    ("d.csv", "client,speed\na,1\nb,1,2\n", "line 3: 3 fields, and the header has 2"),
    ("d.csv", "client,speed\na,1\nb,1\na,2\n", r"line 4: client 'a' is there twice \(before in line 2\)"),
    ("d.csv", "client,speed\na,1\nb,1\nx,2\nyy,3\n", r"line 4: there is no client 'x' \(nor 1 others\)"),
    ("d.csv", "client,speed\nb,1\n", r"1 of 2 clients have no row: 'a'\n  hint: add them, or let clients draw"),
    ("d.csv", "speed\n1\n2\n", r"column 'client' is missing\n  hint: .*drawn:.*d\.csv"),
    ("d.csv", "client,sped\na,1\nb,1\n", "unknown column 'sped'\n  hint: did you mean 'speed'"),
    ("d.csv", "client,download\na,1\nb,1\n", "column 'upload' is missing"),
    ("d.csv", "client,active\na,1\nb,1\n", "column 'inactive' is missing"),
    ("d.csv", "client,finish_time\na,1\nb,1\n", "column 'active' is missing"),
    ("d.csv", "client,speed,computation\na,1,1\nb,1,1\n", "computation and speed say the same"),
    ("d.csv", "client,flops,computation\na,1,1\nb,1,1\n", "computation and flops say the same"),
    ("d.csv", "client,communication,download,upload\na,1,1,1\nb,1,1,1\n", "communication and download say the same"),
    ("d.csv", "client,model\na,x\nb,y\n", "no column says anything about devices"),
    ("d.csv", "client,speed,speed\na,1,1\n", "column 'speed' is there twice"),
    ("d.csv", "client,speed\n", "there are no rows below the header"),
    ("d.csv", "", "the file is empty"),
    ("d.csv", "client,active,inactive\na,0 5,4 5\nb,,\n", "line 2: window 2, from 5 to 5 s, is empty"),
    ("d.csv", "client,active,inactive\na,0,4\nb,9,3\n", "line 3: window 1, from 9 to 3 s, is empty"),
    ("d.csv", "client,active,inactive\na,0 3,4 5\nb,,\n", "window 2, from 3 to 5 s, begins before the one before it"),
    ("d.csv", "client,active,inactive\na,-1,4\nb,,\n", "window 1, from -1 to 4 s, begins before 0 s"),
    ("d.csv", "client,active,inactive\na,0 1,4\nb,,\n", "line 2: 2 times active, and 1 inactive"),
    ("d.csv", "client,active,inactive\na,0,4\nb,1,\n", "line 3: 1 times active, and 0 inactive"),
    ("d.csv", "client,active,inactive\na,0,4\nb,1,x\n", "line 3: inactive = 'x' is not a number"),
    ("d.csv", "client,active,inactive,finish_time\na,0,4,3\nb,,,\n", "from 0 to 4 s, ends after finish_time"),
    ("d.csv", "client,active,inactive,finish_time\na,0,4,0\nb,,,\n", "line 2: finish_time = 0 is not above 0"),
    ("d.txt", "client,speed\na,1\nb,1\n", r"d\.txt' is neither CSV nor JSON"),
    ("d.pkl", "x", r"d\.pkl' is neither CSV nor JSON"),
    ("d.json", '{"a": {"speed": 1},\n "b": {"speed": }}', r"d\.json, line 2: this is not JSON"),
    ("d.json", '{"a": {"speed": 1}, "a": {"speed": 2}}', "'a' is there twice"),
    ("d.json", '{"a": {"speed": 1}, "b": {"speed": 2, "speed": 3}}', "'speed' is there twice"),
    ("d.json", '[{"client": "a", "speed": 1}, {"client": "a", "speed": 2}]', "client 'a' is there twice"),
    ("d.json", "3", "neither an object, by client, nor a list"),
    ("d.json", "{}", "there are no devices"),
    ("d.json", '{"a": {"speed": 1}, "b": 3}', "client 'b': 3 is not an object with fields"),
    ("d.json", '{"a": {"speed": 1}, "b": {"speed": true}}', "client 'b': speed = True is not a number"),
    ("d.json", '{"a": {"speed": 1}, "b": {}}', "client 'b': speed is empty"),
    ("d.json", '{"a": {"speed": 1}, "b": {"speed": [1]}}', r"client 'b': speed = \[1\] is not a number"),
    ("d.json", '{"a": {"speed": 1}, "b": {"speed": NaN}}', "client 'b': speed = nan is not above 0"),
    ("d.json", '{"a": {"active": 3, "inactive": [4]}, "b": {}}', "client 'a': active = 3 is not a list of seconds"),
    ("d.json", '{"a": {"active": [], "inactive": []}, "b": {"active": [], "inactive": []}}', "no device is ever there"),
    ("d.json", '{"a": {"flops": 1}, "b": {"flops": 1}}', "flops says nothing without a model"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), FILES)
def test_a_wrong_file_is_said_to_be_wrong(name: str, content: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, ConfigError), match=says):
        two(str(written(tmp_path, name, content)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"client,speed\n\xff,1\n")
    with pytest.raises(DataError, match=r"cannot be read as UTF-8 text \(byte 13\)"):
        two(tmp_path / "d.csv")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        two(tmp_path / "deep.json")
    for path in ("nowhere.csv", "no/where.json", "drawn:nowhere.csv"):
        with pytest.raises(DataError, match=r"no/?where"):
            two(path)
    with pytest.raises(AtollError, match="3 of 9 clients have no row: '6', '7', '8'"):
        devices({number: {"speed": 1} for number in range(6)}, clients=9)
    with pytest.raises(DataError, match="devices, client '9': there is no client '9'"):
        devices({number: {"speed": 1} for number in range(10)}, clients=9)
