"""Stored models in halves: predicting from runs' folders, in one process and in several; what is refused."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll import codec
from atoll.cli.notice import Notice
from atoll.cli.parties import Asked, predict
from atoll.errors import AtollError, ConfigError, DataError
from atoll.tensors import Record
from atoll.vertical import Vertical, Where, run
from atoll.vertical.fitting import Fitted
from atoll.vertical.halves import session
from atoll.vertical.predicting import Predicted
from atoll.vertical.stored import Stored
from tests.vertical.tables import parties, written
from tests.vertical.test_runs import ports, together

NAMES = ("guest", "host")


def learned(
    place: Path, protocol: str = "secureboost", steps: str = "", **given: Any
) -> tuple[Vertical, Fitted]:
    """A run in one process, its folder below `place`."""
    place.mkdir(exist_ok=True)
    names = (*NAMES, "arbiter") if protocol == "glm" else NAMES
    given = (
        {"trees": 3, "depth": 2, "bins": 8} | given if protocol == "secureboost" else {"epochs": 3} | given
    )
    plan = Vertical.read(
        written(place, protocol, ports(names), **given), [f"features.steps={steps}"] if steps else []
    )
    plan = replace(plan, runs=str(place / "runs"))
    return plan, run(plan)


def apart(stored: Sequence[Stored], secured: Any = None) -> dict[str, Predicted | AtollError]:
    """The same by threads over sockets, each with its own half."""
    found: dict[str, Predicted | AtollError] = {}

    def one(name: str, own: Stored) -> None:
        try:
            found[name] = own.take_part(name, None if secured is None else secured(name))
        except AtollError as error:
            found[name] = error

    threads = [threading.Thread(target=one, args=pair) for pair in zip(NAMES, stored, strict=True)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return found


@pytest.mark.parametrize(
    ("protocol", "steps"), [("secureboost", "woe:6 + select:top=4"), ("glm", ""), ("splitnn", "standardise")]
)
def test_predictions_are_the_same_wherever_parties_are(tmp_path: Path, protocol: str, steps: str) -> None:
    _, found = learned(tmp_path, protocol, steps)
    assert found.folder is not None
    here = Stored.read([found.folder.path])
    new = parties(seed=3)
    ids, shares = found.predict_proba(new)
    told = here.predict()
    assert (list(told.ids), told.labels) == (ids, ("no", "yes"))
    assert np.array_equal(told.shares, shares)
    each = [Stored.read([found.folder.path]) for _ in NAMES]
    others = apart(
        [replace(own, halves={name: own.halves[name]}) for name, own in zip(NAMES, each, strict=True)]
    )
    guest, host = others["guest"], others["host"]
    assert isinstance(guest, Predicted), guest
    assert isinstance(host, Predicted), host
    assert len(host.shares) == 0
    assert (list(guest.ids), guest.labels) == (ids, told.labels)
    assert np.array_equal(guest.shares, shares)


def test_parties_predict_with_their_own_runs_over_tls_to_the_byte(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from atoll.network.authority import Authority
    from atoll.network.between import secured
    from tests.vertical.keys import party_keys

    plan, found = learned(tmp_path, "secureboost", "woe:6")
    assert found.folder is not None
    authority = Authority.init(tmp_path / "ca")
    keys = {name: party_keys(authority, name, tmp_path / "keys" / name) for name in NAMES}
    own = {name: replace(plan, runs=str(tmp_path / name)) for name in NAMES}
    joined = together(own.__getitem__, NAMES, lambda name: secured(keys[name], name))
    assert all(isinstance(each, Fitted) for each in joined.values()), joined
    predict(Asked([str(found.folder.path)], out=str(tmp_path / "one.csv"), quiet=True), Notice(True))

    def one(name: str) -> None:
        out = str(tmp_path / f"{name}-told.csv")
        predict(
            Asked(["last"], name, keys=str(keys[name]), out=out, quiet=True, runs=str(tmp_path / name)),
            Notice(True),
        )

    threads = [threading.Thread(target=one, args=(name,)) for name in NAMES]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert not (tmp_path / "host-told.csv").exists()  # the guest alone learns what is predicted
    text = (tmp_path / "guest-told.csv").read_bytes()
    assert text == (tmp_path / "one.csv").read_bytes()
    assert text.startswith(b"id,class,share no,share yes\nrow 0,")
    # The folders of both parties are as good as that of one run with all.
    places = [str(next((tmp_path / name).iterdir())) for name in NAMES]
    predict(Asked(places, out=str(tmp_path / "both.csv"), quiet=True), Notice(True))
    assert (tmp_path / "both.csv").read_bytes() == text


def test_rows_of_a_host_are_predicted_by_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = learned(tmp_path, "ftl")
    assert found.folder is not None
    host = parties()["host"]
    scores = found.predict_host(host)
    here = Stored.read([found.folder.path])
    assert np.array_equal(here.predict().shares[:, 1], scores)
    guest = apart([here, here])["guest"]
    assert isinstance(guest, Predicted), guest
    assert np.array_equal(guest.shares[:, 1], scores)
    predict(Asked([str(found.folder.path)], quiet=True), Notice(True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "row,class,share no,share yes"
    assert len(lines) == 1 + len(host)


def test_numbers_are_predicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, "secureboost", trees=2)
    table = (tmp_path / "guest.csv").read_text().replace(",no,", ",0,").replace(",yes,", ",3,")
    (tmp_path / "guest.csv").write_text(table)
    found = run(replace(Vertical.read(file, ["task=poisson"]), runs=str(tmp_path / "runs")))
    assert found.folder is not None
    predict(Asked([str(found.folder.path)], json=True, quiet=True), Notice(True))
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith('{"id": "row 0", "value": ')


# --- what does not belong together ----------------------------------------------------------------------------------


def test_halves_of_other_models_are_refused(tmp_path: Path) -> None:
    _, first = learned(tmp_path)
    plan, second = learned(tmp_path / "second")
    table = tmp_path / "second" / "host.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")  # other rows, so another model
    second = run(plan)
    assert first.folder is not None
    assert second.folder is not None
    one, other = Stored.read([first.folder.path]), Stored.read([second.folder.path])
    mixed = {"guest": one.halves["guest"], "host": other.halves["host"]}
    with pytest.raises(ConfigError, match="has a half of another model"):
        replace(one, halves=mixed).predict()
    found = apart(
        [replace(one, halves={"guest": mixed["guest"]}), replace(one, halves={"host": mixed["host"]})]
    )
    assert all("half of another model" in str(each) for each in found.values()), found


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """By what stands in their folders, before anybody is called."""
    plan, first = learned(tmp_path, trees=1)
    table = tmp_path / "host.csv"
    table.write_text("\n".join(table.read_text().splitlines()[:-9]) + "\n")
    second = run(plan)
    third = run(replace(plan, given={**plan.given, "trees": 2}))
    assert first.folder is not None and second.folder is not None and third.folder is not None
    one, other, more = first.folder.path, second.folder.path, third.folder.path
    with pytest.raises(ConfigError, match="are runs with different settings") as told:
        Stored.read([one, more])
    assert told.value.hint
    (one / "host.half.safetensors").unlink()
    (other / "guest.half.safetensors").unlink()
    with pytest.raises(ConfigError, match="the halves of guest and host are of different models") as told:
        Stored.read([one, other])
    assert told.value.hint
    (other / "host.half.safetensors").write_bytes(codec.encode(Record(model=Record())))
    with pytest.raises(ConfigError, match="is no half of a model"):
        Stored.read([other])
    stored = Stored.read([one])
    nowhere = replace(stored.plan, party={**stored.plan.party, "guest": Where()})
    with pytest.raises(ConfigError, match=r"\[party.guest\] names no data"):
        replace(stored, plan=nowhere).predict()
    with pytest.raises(ConfigError, match="the parties are guest, and the model's are guest, host"):
        stored.predict({"guest": parties()["guest"]})
    aligned = Stored(replace(plan, protocol="psi", given={}), dict.fromkeys(NAMES, stored.halves["guest"]))
    with pytest.raises(ConfigError, match="learns no model"):
        aligned.predict(parties())


def test_a_models_name_is_of_its_settings_and_its_rows(tmp_path: Path) -> None:
    plan = Vertical.read(written(tmp_path, "secureboost"))
    name = session(plan, ["b", "a"])
    assert session(plan, [" a", "b "]) == name  # as all parties can make it
    assert session(replace(plan, seed=1), ["a", "b"]) != name
    assert len({session(plan, ids) for ids in (["ab"], ["a", "b"], ["a"], ["a", "bc"], ["ab", "c"])}) == 5


def test_what_a_stored_model_needs_is_said(tmp_path: Path) -> None:
    _, found = learned(tmp_path)
    assert found.folder is not None
    place = found.folder.path
    with pytest.raises(ConfigError, match="a model is as it has been learned"):
        Stored.read([place], sets=["secureboost.trees=9"])
    with pytest.raises(DataError, match="no such file"):
        Stored.read([place], sets=["party.host.data=none.csv"]).predict()
    header = (tmp_path / "host.csv").read_text().replace("b1", "c1")
    (tmp_path / "other.csv").write_text(header)
    with pytest.raises(DataError, match="no column 'b1'"):
        Stored.read([place], sets=[f"party.host.data={tmp_path}/other.csv"]).predict()
    with pytest.raises(ConfigError, match="for one party of several processes"):
        predict(Asked([str(place)], data="x.csv"), Notice(True))
    with pytest.raises(ConfigError, match="say --keys DIR"):
        predict(Asked([str(place)], "host"), Notice(True))
    with pytest.raises(ConfigError, match="the parties are guest, host"):
        predict(Asked([str(place)], "hots", plain=True), Notice(True))
    (place / "host.half.safetensors").rename(tmp_path / "host.half.safetensors")
    with pytest.raises(ConfigError, match="the half of host is not here: there is that of guest"):
        Stored.read([place]).predict()
    (place / "guest.half.safetensors").write_bytes(b"no half")
    with pytest.raises(ConfigError, match="cannot be read"):
        Stored.read([place])
    (place / "guest.half.safetensors").unlink()
    with pytest.raises(ConfigError, match="there is no half of a model"):
        Stored.read([place])
