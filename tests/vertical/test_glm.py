"""Generalised linear models between parties: the models of one table, and nothing open that must be hidden."""

from __future__ import annotations

import lzma
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from atoll import codec
from atoll.errors import ConfigError, DataError, DivergedError
from atoll.he.ckks import CKKS, MASK, CKKSKey, Open, OpenKey
from atoll.parties import Link, Played, play
from atoll.seeds import rng
from atoll.tensors import Record, leaves
from atoll.vertical.figures import figures
from atoll.vertical.glm import GLM, arbiter, kinds, predict
from atoll.vertical.glm.descent import batches
from atoll.vertical.protocol import Case, Progress, Task
from atoll.vertical.side import FloatArray, Side

ROOT = Path(os.environ.get("ATOLL_DATA", "absent")) / "fate-vertical"
needs_data = pytest.mark.skipif(not ROOT.exists(), reason="ATOLL_DATA has no fate-vertical")
SGD = GLM(epochs=4, batch=50, lr=0.2, optimizer="sgd:0.9", l2=0.01)


# --- parties ----------------------------------------------------------------------------------------------------


def train(
    protocol: GLM, case: Case, sides: Mapping[str, Side], progress: Mapping[str, Progress] | None = None
) -> Played:
    began = progress or {}

    def role(name: str) -> Any:
        mine = began.get(name, Progress())
        if name == case.arbiter:
            return lambda link: protocol.arbiter(link, case, mine)
        part = protocol.guest if name == case.guest else protocol.host
        return lambda link: part(link, sides[name], case, mine)

    names = [case.guest, *case.hosts, *([case.arbiter] if case.arbiter else [])]
    return play({name: role(name) for name in names}, keep=True)


def ask(protocol: GLM, case: Case, sides: Mapping[str, Side], halves: Mapping[str, Record]) -> Played:
    def role(name: str) -> Any:
        part = protocol.score if name == case.guest else protocol.answer
        return lambda link: part(link, sides[name], case, halves[name])

    return play({name: role(name) for name in (case.guest, *case.hosts)}, keep=True)


def scores(protocol: GLM, case: Case, sides: Mapping[str, Side], halves: Mapping[str, Record]) -> FloatArray:
    found: FloatArray = ask(protocol, case, sides, halves).results[case.guest]
    return found


def named(x: FloatArray, **more: Any) -> Side:
    return Side(x, tuple(f"x{at}" for at in range(x.shape[1])), **more)


def made(task: Task, rows: int = 120, hosts: int = 1, seed: int = 0) -> tuple[Case, dict[str, Side]]:
    """A table of 3 columns at each party whose label depends on all of them."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 3 * (hosts + 1))) * 3 + 1
    z = (x - 1) @ np.linspace(-1, 1, x.shape[1]) / 4
    exposure = None
    if task == "binary":
        y = (z + draw.logistic(size=rows) / 2 > 0).astype(float)
    elif task == "multiclass":
        y = np.digitize(z, [-0.7, 0.7]).astype(float)
    elif task == "regression":
        y = 40 + 7 * z + draw.normal(size=rows)
    else:
        exposure = draw.uniform(0.5, 2, size=rows)
        y = draw.poisson(np.exp(z / 2) * exposure).astype(float)
    names = tuple(f"host{at}" if hosts > 1 else "host" for at in range(hosts))
    sides = {name: named(x[:, 3 * at + 3 : 3 * at + 6]) for at, name in enumerate(names)}
    sides["guest"] = named(x[:, :3], y=y, exposure=exposure)
    return Case(task, 3 if task == "multiclass" else 2, hosts=names, arbiter="arbiter", seed=3), sides


def centralised(protocol: GLM, case: Case, sides: Mapping[str, Side]) -> FloatArray:
    """The same descent by one who has all columns, SGD with momentum alone: [d + 1, scores], intercept last."""
    guest = sides["guest"]
    x = np.hstack([guest.x, *(sides[name].x for name in case.hosts)])
    x = np.hstack([(x - x.mean(0)) / x.std(0), np.ones((len(x), 1))])
    y, task = np.asarray(guest.y), case.task
    count = case.classes if task == "multiclass" else 1
    w = np.zeros((x.shape[1], count))
    exposure = np.ones(len(y)) if guest.exposure is None else guest.exposure
    if task == "poisson":
        w[-1] = np.log(y.sum() / exposure.sum())
    momentum = float(protocol.optimizer.partition(":")[2] or 0)
    velocity = np.zeros_like(w)
    for epoch in range(1, protocol.epochs + 1):
        for rows in batches(len(x), protocol.batch, case.seed, epoch):
            z = x[rows] @ w
            if task == "binary":
                d = z / 4 - (2 * y[rows, None] - 1) / 2
            elif task == "multiclass":
                d = z / 4 - np.where(y[rows, None] == np.arange(count), 1, -1) / 2
            elif task == "regression":
                d = z - (y[rows, None] - y.mean()) / y.std()
            else:
                d = (np.exp(z) * exposure[rows, None] - y[rows, None]) / y.mean()
            gradient = x[rows].T @ d / len(rows)
            gradient[:-1] += protocol.l2 * w[:-1]
            velocity = momentum * velocity + gradient
            w = w - protocol.lr * velocity
    return w


def joined(case: Case, halves: Mapping[str, Record]) -> FloatArray:
    """All weights in the order of the columns, [d + 1, scores], intercept last."""
    parts = [halves[name].weights.numpy() for name in (case.guest, *case.hosts)]
    return np.vstack([*parts, halves[case.guest].intercept.numpy()[None]])


def equal(a: Record, b: Record) -> bool:
    return codec.encode(a) == codec.encode(b)


# --- the same model as one table gives ----------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "poisson"])
@pytest.mark.parametrize("hosts", [1, 3])
def test_the_model_is_that_of_one_table(task: Task, hosts: int) -> None:
    case, sides = made(task, hosts=hosts)
    protocol = replace(SGD, lr=0.05)
    halves = train(protocol, case, sides).results
    assert np.abs(joined(case, halves) - centralised(protocol, case, sides)).max() < 1e-6


@pytest.mark.parametrize(("task", "hosts"), [("binary", 1), ("multiclass", 2)])
def test_under_ckks_it_is_the_same_to_a_millionth(task: Task, hosts: int) -> None:
    case, sides = made(task, hosts=hosts)
    protocol = replace(SGD, epochs=1, batch=1000)
    plain = train(protocol, case, sides).results
    played = train(protocol, replace(case, crypto="ckks"), sides)
    assert np.abs(joined(case, played.results) - joined(case, plain)).max() < 1e-6
    assert played.transcript.ciphertexts() > 0
    under = {count.kind: count.under for count in played.transcript.counts()}
    assert under["glm.score"] == under["glm.residual"] == under["glm.masked"] == "ckks-8192"


@pytest.mark.slow
def test_counts_under_ckks_are_the_same_to_a_hundred_thousandth() -> None:
    case, sides = made("poisson", hosts=2)
    protocol = replace(SGD, epochs=2, lr=0.05)
    plain = train(protocol, case, sides).results
    found = train(protocol, replace(case, crypto="ckks"), sides).results
    assert np.abs(joined(case, found) - joined(case, plain)).max() < 1e-5


def test_an_encrypted_gradient_is_that_of_the_taylor_series() -> None:
    """After one step of size 1 from given weights the difference is the gradient, x'(z/4 - y/2) / n."""
    case, sides = made("binary", rows=200)
    protocol = GLM(epochs=2, batch=1000, lr=1.0, optimizer="sgd")
    began = {}
    for name in ("guest", "host"):
        begin = train(protocol, case, sides)  # for the form of a half
        w = torch.from_numpy(rng(5, name).normal(size=(3, 1)))
        half = begin.results[name].replace(weights=w, optimizer=Record(), stopped=False)
        began[name] = Progress(1, half)
    began["arbiter"] = Progress(1, Record(stopped=False))
    x = np.hstack([sides["guest"].x, sides["host"].x])
    x = np.hstack([(x - x.mean(0)) / x.std(0), np.ones((200, 1))])
    w0 = joined(case, {name: began[name].half for name in ("guest", "host")})  # type: ignore[misc]
    y = 2 * np.asarray(sides["guest"].y)[:, None] - 1
    due = x.T @ (x @ w0 / 4 - y / 2) / 200
    for crypto, bound in (("none", 1e-6), ("ckks", 1e-5)):
        halves = train(protocol, replace(case, crypto=crypto), sides, began).results
        assert np.abs(w0 - joined(case, halves) - due).max() < bound


def test_parties_without_columns_and_constant_columns_take_part() -> None:
    case, sides = made("binary")
    x = np.hstack([sides["guest"].x, sides["host"].x])
    alone = {"guest": named(x, y=sides["guest"].y), "host": named(np.zeros((120, 0)))}
    other = {"guest": named(np.zeros((120, 0)), y=sides["guest"].y), "host": named(x)}
    constant = {
        "guest": sides["guest"],
        "host": named(np.hstack([sides["host"].x, np.full((120, 1), 0.1)])),
    }
    for crypto in ("none", "ckks"):
        now, protocol = replace(case, crypto=crypto), replace(SGD, epochs=1, batch=1000)
        due = centralised(protocol, case, sides)
        for parts in (alone, other) if crypto == "none" else (alone,):
            assert np.abs(joined(case, train(protocol, now, parts).results) - due).max() < 1e-6
        halves = train(protocol, now, constant).results
        assert halves["host"].weights[3] == 0
        due = np.insert(due, 6, 0, axis=0)
        assert np.abs(joined(case, halves) - due).max() < 1e-6


def test_missing_values_count_as_the_mean() -> None:
    case, sides = made("regression")
    holes = sides["host"].x.copy()
    holes[::7, 1] = np.nan
    filled = holes.copy()
    filled[::7, 1] = np.nanmean(holes[:, 1])
    found = train(SGD, case, {**sides, "host": named(holes)}).results
    column = filled[:, 1]
    assert found["host"].means[1] == pytest.approx(column.mean())
    assert found["host"].scales[1] == pytest.approx(np.nanstd(holes[:, 1]))
    rows = scores(SGD, case, {**sides, "host": named(holes)}, found)
    assert np.array_equal(rows, scores(SGD, case, {**sides, "host": named(filled)}, found))


def test_l2_is_ridge_regression_and_l1_makes_zeros() -> None:
    case, sides = made("regression")
    protocol = GLM(epochs=400, batch=1000, lr=0.1, optimizer="sgd:0.9", l2=0.3)
    x = np.hstack([sides["guest"].x, sides["host"].x])
    x = (x - x.mean(0)) / x.std(0)
    y = np.asarray(sides["guest"].y)
    y = (y - y.mean()) / y.std()
    ridge = np.linalg.solve(x.T @ x / 120 + 0.3 * np.eye(6), x.T @ y / 120)
    found = joined(case, train(protocol, case, sides).results)
    assert np.abs(found[:-1, 0] - ridge).max() < 1e-6 and abs(found[-1, 0]) < 1e-6
    sparse = joined(case, train(replace(protocol, optimizer="sgd", l2=0.0, l1=0.3), case, sides).results)[
        :-1, 0
    ]
    # The optimum of the lasso: |gradient| <= l1 where a weight is 0, and minus its sign times l1 elsewhere.
    gradient = x.T @ (x @ sparse - y) / 120
    assert (sparse == 0).any() and (sparse != 0).any()
    assert np.abs(gradient[sparse == 0]).max() <= 0.3 + 1e-6
    assert np.abs(gradient[sparse != 0] + 0.3 * np.sign(sparse[sparse != 0])).max() < 1e-6


# --- real data ----------------------------------------------------------------------------------------------------


@lru_cache(maxsize=3)
def public(name: str) -> dict[str, Side]:
    """Guest and host of a data set, aligned by id."""
    found = {}
    for part in ("guest", "host"):
        with lzma.open(ROOT / f"{name}_hetero_{part}.csv.xz", "rt") as file:
            head, *lines = file.read().splitlines()
        columns = head.split(",")
        table = np.array([line.split(",") for line in lines], dtype=np.float64)
        table = table[np.argsort(table[:, 0], kind="stable")]
        start = 2 if part == "guest" else 1
        y = table[:, 1] if part == "guest" else None
        found[part] = Side(table[:, start:], tuple(columns[start:]), y), table[:, 0]
    assert np.array_equal(found["guest"][1], found["host"][1])
    return {part: side for part, (side, _) in found.items()}


def stratified(y: FloatArray, share: float) -> tuple[Any, Any]:
    """Rows to learn from and rows to test on, the same share of each class."""
    draw = np.random.default_rng(0)
    test = np.concatenate(
        [
            draw.permutation(np.flatnonzero(y == value))[: round(share * (y == value).sum())]
            for value in (0, 1)
        ]
    )
    return np.setdiff1d(np.arange(len(y)), test), np.sort(test)


def fit(protocol: GLM, case: Case, sides: Mapping[str, Side]) -> dict[str, float]:
    halves = train(protocol, case, sides).results
    return figures(case.task, np.asarray(sides["guest"].y), scores(protocol, case, sides, halves))


@needs_data
def test_breast_is_within_a_hundredth_of_one_table() -> None:
    case = Case("binary", arbiter="arbiter")
    assert fit(GLM(), case, public("breast"))["auc"] > 0.99 * 0.9974
    # Under CKKS the same predictions, row by row.
    protocol = GLM(epochs=1)
    halves = [train(protocol, replace(case, crypto=c), public("breast")).results for c in ("none", "ckks")]
    first, second = (scores(protocol, case, public("breast"), half) for half in halves)
    assert np.abs(first - second).max() < 1e-6


@needs_data
def test_default_credit_is_within_a_hundredth_of_one_table() -> None:
    case, sides = Case("binary", arbiter="arbiter"), public("default_credit")
    assert fit(GLM(), case, sides)["auc"] > 0.99 * 0.7242
    learn, test = stratified(np.asarray(sides["guest"].y), 0.2)
    halves = train(GLM(), case, {name: side.take(learn) for name, side in sides.items()}).results
    held = {name: side.take(test) for name, side in sides.items()}
    found = figures("binary", np.asarray(held["guest"].y), scores(GLM(), case, held, halves))
    assert found["auc"] > 0.99 * 0.7149


@needs_data
def test_dvisits_is_within_a_hundredth_of_one_table() -> None:
    case, sides = Case("poisson", arbiter="arbiter"), public("dvisits")
    found = fit(GLM(lr=0.05, epochs=60), case, sides)
    assert found["rmse"] < 1.01 * 0.7329 and found["d2"] > 0.99 * 0.2228
    linear = fit(GLM(lr=0.05, epochs=60), replace(case, task="regression"), sides)
    x = np.hstack([sides["guest"].x, sides["host"].x, np.ones((len(sides["host"]), 1))])
    y = np.asarray(sides["guest"].y)
    least = np.sqrt(np.mean((x @ np.linalg.lstsq(x, y, rcond=None)[0] - y) ** 2))
    assert linear["rmse"] < 1.01 * least


@pytest.mark.slow
@needs_data
def test_breast_under_ckks_is_within_a_hundredth_of_one_table() -> None:
    case = Case("binary", crypto="ckks", arbiter="arbiter")
    assert fit(GLM(), case, public("breast"))["auc"] > 0.99 * 0.9974


# --- going on, and stopping ---------------------------------------------------------------------------------------


def kept(names: list[str]) -> tuple[dict[str, Progress], dict[str, list[tuple[int, Record]]]]:
    told: dict[str, list[tuple[int, Record]]] = {name: [] for name in names}
    return {
        name: Progress(tell=lambda number, half, figures, name=name: told[name].append((number, half)))  # type: ignore[misc]
        for name in names
    }, told


@pytest.mark.parametrize("optimizer", ["sgd:0.9", "adam"])
@pytest.mark.parametrize("task", ["binary", "poisson"])
def test_a_run_that_goes_on_ends_with_the_same_model_to_the_bit(optimizer: str, task: Task) -> None:
    case, sides = made(task, hosts=2)
    protocol = replace(SGD, optimizer=optimizer, lr=0.05, l1=0.001)
    names = ["guest", "host0", "host1", "arbiter"]
    progress, told = kept(names)
    whole = train(protocol, case, sides, progress).results
    assert all([number for number, _ in told[name]] == [1, 2, 3, 4] for name in names)
    for at in (1, 3):
        began = {name: Progress(at, codec.decode(codec.encode(told[name][at - 1][1]))) for name in names}
        again = train(protocol, case, sides, began).results
        assert all(equal(again[name], whole[name]) for name in names[:3])
    assert equal(train(protocol, case, sides).results["guest"], whole["guest"])


def test_parties_that_go_on_after_other_epochs_are_told() -> None:
    case, sides = made("binary")
    progress, told = kept(["guest", "host", "arbiter"])
    train(SGD, case, sides, progress)
    began = {name: Progress(2, told[name][1][1]) for name in told}
    began["host"] = Progress(1, told["host"][0][1])
    with pytest.raises(DataError, match="guest goes on after epoch 2, and this party after epoch 1"):
        train(SGD, case, sides, began)


def test_all_stop_once_no_weight_moves() -> None:
    case, sides = made("regression")
    protocol = GLM(epochs=500, batch=1000, lr=0.2, optimizer="sgd", tolerance=1e-4)
    progress, told = kept(["guest", "host", "arbiter"])
    whole = train(protocol, case, sides, progress).results
    count = len(told["guest"])
    assert 5 < count < 400 and {len(each) for each in told.values()} == {count}
    last, before = (joined(case, {n: told[n][at][1] for n in ("guest", "host")}) for at in (-1, -2))
    earlier = joined(case, {n: told[n][-3][1] for n in ("guest", "host")})
    assert np.abs(last - before).max() < 1e-4 <= np.abs(before - earlier).max()
    # Where a run was broken off after that, it stays where it is.
    began = {name: Progress(count, told[name][-1][1]) for name in told}
    assert equal(train(protocol, case, sides, began).results["guest"], whole["guest"])


# --- what nobody may see ------------------------------------------------------------------------------------------


def said(played: Played, kind: str, sender: str | None = None) -> list[Record]:
    return [
        record for who, _, name, record in played.transcript.said if name == kind and sender in (None, who)
    ]


def masked(played: Played, sender: str, rows: int) -> FloatArray:
    """What the arbiter decrypts of a party's gradients, over the range of masks: in [-1, 1)."""
    sent = said(played, "glm.masked", sender)
    sums = [OpenKey().sums(each.cipher, rows, each.columns, 1).ravel() for each in sent]
    return np.concatenate(sums) / (arbiter._grain(rows) * 2.0 ** (MASK - 1))


def test_the_arbiter_sees_uniform_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    case, sides = made("binary")
    protocol = replace(SGD, epochs=100, batch=1000)
    for name in ("guest", "host"):
        seen = masked(train(protocol, case, sides), name, 120)
        assert stats.kstest(seen, "uniform", (-1, 2)).pvalue > 1e-6
        assert len(np.unique(seen)) == len(seen)
    # Without masks it sees gradients, and the test above falls.
    monkeypatch.setattr(arbiter, "drawn", lambda count, grain, bits: np.zeros(count))
    assert stats.kstest(masked(train(protocol, case, sides), "host", 120), "uniform", (-1, 2)).pvalue < 1e-50


def test_under_ckks_nothing_is_open_but_masked_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    case, sides = made("binary")
    protocol = replace(SGD, epochs=2, batch=1000)
    keys: list[CKKSKey] = []
    monkeypatch.setattr(arbiter, "_key", lambda case: keys.append(CKKSKey()) or keys[-1])
    played = train(protocol, replace(case, crypto="ckks"), sides)
    opened = []
    for _, receiver, kind, record in played.transcript.said:
        floats = [leaf for leaf in leaves(record) if torch.is_tensor(leaf) and leaf.is_floating_point()]
        assert not floats or (kind == "glm.opened" and receiver in sides)
        opened += floats
    # Gradients are below 1; what goes over the wire is nowhere near that.
    assert len(opened) == 4 and float(torch.cat(opened).abs().median()) / 120 > 2.0**20
    # What passes encrypted is what it is said to be, and a host cannot take its own part out of the residuals.
    public = CKKS(keys[0].public())
    mine, whole = (said(played, kind)[0].cipher for kind in ("glm.score", "glm.residual"))
    z = keys[0].decrypt(whole)[0, :120]
    y = np.asarray(sides["guest"].y)
    assert np.abs(z - (0.5 - y)).max() < 1e-6
    assert public.unpack(whole)[0] - public.unpack(mine)[0] is not None


def test_residuals_that_were_not_encrypted_anew_would_give_labels_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard above sees it: c1 of the difference is 0, and c0 is the guest's part, open."""
    case, sides = made("binary")
    encrypt = CKKS.encrypt
    taken: list[Any] = []

    def add(self: CKKS, own: Any, theirs: Any) -> Any:
        return [other + values.tolist() for other, values in zip(theirs, taken.pop(), strict=True)]

    def note(self: CKKS, values: FloatArray) -> Any:
        taken.append([self._full(piece) for piece in self.cut(values)])
        return encrypt(self, values)

    monkeypatch.setattr(CKKS, "add", add)
    monkeypatch.setattr(CKKS, "encrypt", note)
    # Who encrypts last before an addition is the host: its own part comes off the list first.
    protocol = replace(SGD, epochs=1, batch=1000)
    played = train(protocol, replace(case, crypto="ckks"), sides)
    public = CKKS(said(played, "glm.key")[0].public)
    mine, whole = (public.unpack(said(played, kind)[0].cipher)[0] for kind in ("glm.score", "glm.residual"))
    with pytest.raises(RuntimeError, match="transparent"):
        whole - mine


def test_too_many_columns_for_a_batch_are_refused() -> None:
    case, sides = made("binary", rows=8)
    with pytest.raises(DataError, match=r"guest has 4 columns .* and a batch has 4 rows"):
        train(replace(SGD, batch=4), case, sides)
    wide = {**sides, "host": named(np.random.default_rng(0).normal(size=(8, 9)))}
    with pytest.raises(DataError, match=r"host has 9 columns .* and a batch has 8 rows"):
        train(replace(SGD, batch=8), case, wide)


def test_the_arbiter_opens_fewer_sums_than_a_batch_has_rows() -> None:
    case, sides = made("binary", rows=8)
    settings = replace(SGD, batch=8)

    async def greedy(link: Link) -> None:
        await link.receive("guest", kinds.PLAN)
        await link.receive("arbiter", kinds.KEY)
        await link.send("guest", kinds.SCORE, Record(cipher=torch.zeros(1, 8 * 8, dtype=torch.uint8)))
        residual = Open().unpack((await link.receive("guest", kinds.RESIDUAL)).cipher)
        each = Open().totals(residual, np.eye(8), np.zeros((8, 1)), 1e-6)
        await link.send("arbiter", kinds.MASKED, Record(cipher=Open().pack(each), columns=8))
        await link.receive("arbiter", kinds.OPENED)

    roles = {
        "guest": lambda link: settings.guest(link, sides["guest"], case, Progress()),
        "host": greedy,
        "arbiter": lambda link: settings.arbiter(link, case, Progress()),
    }
    with pytest.raises(DataError, match=r"host has 8 columns .* could compute the residuals"):
        play(roles)


def test_a_half_has_only_what_is_its_partys() -> None:
    case, sides = made("regression", hosts=2)
    halves = train(SGD, case, sides).results
    for name in case.hosts:
        assert set(halves[name]) == {"weights", "means", "scales"}
        assert np.allclose(halves[name].means, sides[name].x.mean(0))
    assert set(halves["guest"]) == {"weights", "intercept", "means", "scales", "label"}
    assert halves["arbiter"] is None
    assert all(half.weights.shape == (3, 1) for half in (halves[n] for n in ("guest", *case.hosts)))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "poisson"])
def test_hosts_scores_are_hidden_in_their_sum(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    case, sides = made(task, hosts=3)
    protocol = replace(SGD, lr=0.05)
    halves = train(protocol, case, sides).results
    played = ask(protocol, case, sides, halves)
    x = [(s.x - s.x.mean(0)) / s.x.std(0) for s in (sides[n] for n in ("guest", *case.hosts))]
    z = np.hstack([*x, np.ones((120, 1))]) @ joined(case, halves)
    due = predict.predicted(z, case, halves["guest"], sides["guest"].exposure)
    assert np.allclose(played.results["guest"], due, rtol=1e-7)
    for name in case.hosts:
        seen = np.concatenate([r.score.numpy().ravel() for r in said(played, "glm.hidden", name)]) / 2.0**63
        assert stats.kstest(seen, "uniform", (-1, 2)).pvalue > 1e-6
    assert not said(played, "glm.partial")
    monkeypatch.setattr(predict, "_mask", lambda seed, shape: np.zeros(shape, dtype=np.int64))
    open_ = ask(protocol, case, sides, halves)
    assert np.allclose(open_.results["guest"], due, rtol=1e-7)
    seen = said(open_, "glm.hidden", "host0")[0].score.numpy() / 2.0**63
    assert np.abs(seen).max() < 1e-6


# --- what cannot be learned ---------------------------------------------------------------------------------------


def change(sides: dict[str, Side], name: str, **more: Any) -> dict[str, Side]:
    return {**sides, name: replace(sides[name], **more)}


def test_what_cannot_be_learned_is_said() -> None:
    case, sides = made("binary")
    empty = np.full((120, 3), np.nan)
    wrong: list[tuple[Case, dict[str, Side], str]] = [
        (case, change(sides, "guest", y=np.ones(120)), "all rows are of one class, 1"),
        (case, change(sides, "guest", y=np.full(120, 2.0)), "classes from 0 to 1, and 2 is among them"),
        (case, change(sides, "guest", y=np.full(120, np.nan)), "missing or infinite labels"),
        (case, change(sides, "guest", y=None), "no label"),
        (case, change(sides, "host", x=empty), "column 'x0' has no value in any row"),
        (case, change(sides, "host", x=empty * 0 + np.inf), "no value|infinite"),
        (case, {name: side.take(slice(0)) for name, side in sides.items()}, "no rows to learn from"),
        (case, {**sides, "host": sides["host"].take(slice(100))}, "100 rows here and 120 at guest"),
        (replace(case, task="regression"), change(sides, "guest", y=np.ones(120)), "the same in all rows"),
        (replace(case, task="poisson"), change(sides, "guest", y=np.zeros(120)), "some of them above 0"),
        (replace(case, task="poisson"), change(sides, "guest", y=-np.ones(120)), "must be 0 or more"),
        (
            replace(case, task="poisson"),
            change(sides, "guest", exposure=np.zeros(120)),
            "exposures must be above 0",
        ),
    ]
    for now, parts, message in wrong:
        with pytest.raises(DataError, match=message):
            train(SGD, now, parts)
    with pytest.raises(DivergedError):
        train(replace(SGD, lr=1e200, epochs=10), case, sides)
    poisson, counts = made("poisson")
    with pytest.raises(DivergedError, match="beyond 15"):
        train(replace(SGD, lr=1e3), poisson, counts)


def test_other_columns_than_those_learned_are_refused() -> None:
    case, sides = made("binary")
    halves = train(SGD, case, sides).results
    with pytest.raises(DataError, match="2 columns, and the model has learned from 3"):
        ask(SGD, case, {**sides, "host": named(sides["host"].x[:, :2])}, halves)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"batch": 1}, "batch = 1"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"l1": -1.0}, "l1 = -1.0"),
        ({"l2": float("nan")}, "l2 = nan"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"optimizer": "sdg"}, "sdg"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GLM(**settings)


def test_a_case_that_it_is_nothing_for_is_refused() -> None:
    case, sides = made("binary")
    for wrong, message in (
        (replace(case, crypto="rot13"), "crypto = 'rot13'"),
        (replace(case, crypto="ckks-4096"), "knows ckks-8192"),
        (replace(case, arbiter=None), "needs an arbiter"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(SGD, wrong, sides)
    other = replace(SGD, batch=30)
    roles = {
        "guest": lambda link: SGD.guest(link, sides["guest"], case, Progress()),
        "host": lambda link: other.host(link, sides["host"], case, Progress()),
        "arbiter": lambda link: SGD.arbiter(link, case, Progress()),
    }
    with pytest.raises(DataError, match="guest has other settings"):
        play(roles)
