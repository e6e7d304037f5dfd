"""`atoll topologies`, and what is said of graphs that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from atoll.cli.main import main


def test_graphs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    main_ok(["topologies", "--peers", "16"])
    lines = {
        line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.split()
    }
    assert lines["ring"] == ["2", "32", "0.05075", "-", "1"]
    assert lines["one-peer"] == ["1", "16", "1.00000", "4", "rounds", "4"]
    main_ok(["topologies", "base:2", "--peers", "23"])
    assert "base:2" in capsys.readouterr().out


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["method=fedavg", "topology=ring"], "dpsgd"),
        (["method=dpsgd", "topology=torus", "clients=17"], "another number of peers"),
        (["method=dpsgd", "topology=epidemic:2"], "pushsum"),
        (["method=dpsgd", "topology=file:{place}/apart.csv", "clients=4"], "add a link that joins the parts"),
        (["method=dpsgd", "topology=file:{place}/who.csv", "clients=4"], "peers are 0 to 3"),
        (["method=dpsgd", "topology=file:{place}/sums.csv", "clients=4"], "leave the weights out"),
    ],
)
def test_what_cannot_be_ends_in_a_hint(
    sets: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "apart.csv").write_text("from,to\n0,1\n2,3\n")
    (tmp_path / "who.csv").write_text("from,to\n0,1\n1,9\n")
    (tmp_path / "sums.csv").write_text("from,to,weight\n0,1,0.9\n1,2,0.5\n2,3,0.5\n3,0,0.5\n1,3,0.5\n")
    given = [each for text in sets for each in ("--set", text.format(place=tmp_path))]
    with pytest.raises(SystemExit) as ended:
        main(["run", *given, "--set", "data=digits", "--set", "rounds=1", "--runs", str(tmp_path)])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") <= 6 and "hint:" in said and says in said and "Traceback" not in said
