"""Hetero-FTL: its gradients are those of its loss, ciphers change nothing, and nobody sees what they should not."""

from __future__ import annotations

import lzma
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from atoll import codec
from atoll.errors import CodecError, ConfigError, DataError
from atoll.parties import Link, Played, play
from atoll.privacy import Gaussian, epsilon
from atoll.tensors import Record
from atoll.vertical.figures import auc
from atoll.vertical.ftl import FTL, sealing
from atoll.vertical.ftl.forms import Guest, Host, summed
from atoll.vertical.ftl.noise import Noise
from atoll.vertical.ftl.sealing import COVER, SLOTS, Keys, Peer, blocks, width
from atoll.vertical.ftl.talk import talk
from atoll.vertical.protocol import Case, Progress
from atoll.vertical.side import Side

ROOT = Path(os.environ.get("ATOLL_DATA", "absent"))
OPEN, SEALED = Case("binary"), Case("binary", crypto="ckks")
SHORT = FTL(hidden=8, epochs=4, lr=0.05, overlap=40)


def side(x: NDArray[np.float64], y: NDArray[np.float64] | None = None) -> Side:
    return Side(x, tuple(f"x{at}" for at in range(x.shape[1])), y)


def rows(count: int = 300, seed: int = 0) -> tuple[Side, Side]:
    """Two views of the same things: 5 columns and the label at the guest, 7 at the host."""
    random = np.random.default_rng(seed)
    inside = random.normal(size=(count, 3))
    y = (inside @ [2.0, -1.0, 0.5] + random.normal(size=count) > 0).astype(np.float64)
    one, two = (inside @ random.normal(size=(3, d)) + 0.3 * random.normal(size=(count, d)) for d in (5, 7))
    return side(one, y), side(two)


def learn(protocol: FTL, case: Case, a: Side, b: Side, keep: bool = False, **given: Progress) -> Played:
    return play(
        {
            "guest": lambda link: protocol.guest(link, a, case, given.get("guest", Progress())),
            "host": lambda link: protocol.host(link, b, case, given.get("host", Progress())),
        },
        keep,
    )


def judge(protocol: FTL, case: Case, halves: Any, b: Side, keep: bool = False) -> Played:
    nothing = Side(np.zeros((len(b), 0)), ())
    return play(
        {
            "guest": lambda link: protocol.score(link, nothing, case, halves["guest"]),
            "host": lambda link: protocol.answer(link, b, case, halves["host"]),
        },
        keep,
    )


# --- the loss and its gradients -------------------------------------------------------------------------------------


def forms(align: Any, seed: int = 0) -> tuple[Guest, Host]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, d, inputs, others = 9, 4, draw(20, 6), draw(9, 5)
    one, two = draw(6, d), draw(5, d)
    y = torch.sign(draw(20))
    return (
        Guest(inputs, torch.tanh(inputs @ one), n, one, 0.7, 0.05, align, y),
        Host(others, torch.tanh(others @ two), n, two, 0.7, 0.05, align),
    )


@pytest.mark.parametrize("align", ["dot", "distance"])
def test_the_closed_forms_are_the_gradients_of_the_loss(align: str) -> None:
    guest, host = forms(align)
    one, two = (form.weight.clone().requires_grad_() for form in (guest, host))
    ua, ub = torch.tanh(guest.inputs @ one), torch.tanh(host.inputs @ two)
    n, d = guest.common, one.shape[1]
    phi = guest.y @ ua / len(guest.y)
    score, y = ub @ phi, guest.y[:n]
    common = ua[:n]
    alike = -(common * ub).sum() if align == "dot" else (common - ub).square().sum()
    loss = (math.log(2) - y * score / 2 + score.square() / 8).mean() + 0.7 * alike / (n * d)
    own = 0.05 / 2 * one.square().sum()
    whole = loss + own + 0.05 / 2 * two.square().sum()
    whole.backward()
    theirs = torch.stack([summed(row, host.terms()) for row in guest.rows()])
    torch.testing.assert_close(theirs[:-1] + guest.own(), one.grad)
    assert guest.loss(theirs[-1]) == pytest.approx(float((loss + own).detach()))
    found = torch.stack([summed(row, guest.terms()) for row in host.rows()])
    torch.testing.assert_close(found + host.own(), two.grad)


# --- under encryption -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", ["dot", "distance"])
def test_sums_of_ciphertexts_are_those_of_numbers(align: str) -> None:
    guest, host = forms(align)

    def role(crypto: str, form: Guest | Host, other: str) -> Callable[[Link], Any]:
        async def run(link: Link) -> torch.Tensor:
            way = talk(crypto, link, other, isinstance(form, Guest), form.common, form.u.shape[1])
            await way.begin()
            await way.exchange(form.terms())
            return await way.sums(form.rows())

        return run

    plain, sealed = (
        play({"guest": role(crypto, guest, "host"), "host": role(crypto, host, "guest")}).results
        for crypto in ("none", "ckks")
    )
    for name in ("guest", "host"):
        torch.testing.assert_close(plain[name], sealed[name], rtol=0, atol=1e-5)


def test_a_model_is_the_same_under_encryption_and_bytes_are_those_of_the_formula() -> None:
    a, b = rows()
    common, test = b.take(slice(0, 40)), b.take(slice(40, None))
    plain, sealed = (learn(SHORT, case, a, common) for case in (OPEN, SEALED))
    scores = [
        judge(SHORT, case, played.results, test)
        for case, played in ((OPEN, plain), (SEALED, sealed), (OPEN, sealed))
    ]
    assert a.y is not None
    found = [auc(a.y[40:], each.results["guest"]) for each in scores]
    assert found[0] > 0.75
    assert abs(found[0] - found[1]) < 1e-3
    np.testing.assert_allclose(scores[1].results["guest"], scores[2].results["guest"], atol=1e-5)

    d, n, epochs = 8, 40, 4
    terms = epochs * 8 * (d * d + n * d)
    assert plain.transcript.nbytes() == {"ftl.guest": terms, "ftl.host": terms}
    one = epochs * width()
    key = Keys().public().numel()
    sums = (a.x.shape[1] + 2) + (b.x.shape[1] + 1)  # a row for each weight of a number; one more for the loss
    assert sealed.transcript.nbytes() == {
        "ftl.key": 2 * key,
        "ftl.guest.sealed": 2
        * one,  # Phi'Phi, and 40 rows: a ciphertext each, however many rows are in common
        "ftl.host.sealed": 2 * one,
        "ftl.masked": sums * one,
        "ftl.sums": sums * epochs * d * 8,
    }
    assert sealed.transcript.ciphertexts() == epochs * (4 + sums)
    assert scores[1].transcript.nbytes() == {
        "ftl.key": key,
        "ftl.phi.sealed": width(),
        "ftl.products": blocks(len(test), d) * width() + 8,
    }


def test_terms_take_one_square_and_as_many_ciphertexts_as_rows_fill() -> None:
    assert blocks(32, 32) == 1
    assert [blocks(n, 32) for n in (50, 128, 129, 6000)] == [1, 1, 2, 47]


def seen(covered: torch.Tensor, keys: Keys) -> NDArray[np.float64]:
    return keys.slots(covered[None])[0]


@pytest.mark.parametrize("cover", [COVER, 0.0])
def test_who_decrypts_sees_covers_alone(cover: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without covers what is decrypted are products of single rows, from which weights and rows can be told."""
    monkeypatch.setattr(sealing, "COVER", cover)
    guest, host = forms("dot")
    keys = Keys()
    peer = Peer(keys.public())
    terms = guest.terms()
    opened = [peer.open(keys.seal(each), 1) for each in terms]
    row = next(host.rows())
    covered, covers = peer.weighed(row, *opened)
    slots = seen(covered, keys)
    each = np.zeros(SLOTS)
    each[: row.rows.numel()] += (row.rows * terms.rows).numpy().ravel()
    each[: row.square.numel()] += (row.square * terms.square).numpy().ravel()
    if not cover:
        np.testing.assert_allclose(slots, each, atol=1e-6)
        return
    assert abs(np.corrcoef(slots, each)[0, 1]) < 0.1
    order = np.sort(slots) / (2 * COVER) + 0.5
    apart = np.abs(order - (np.arange(SLOTS) + 0.5) / SLOTS).max()
    assert apart < 1.95 / math.sqrt(SLOTS)  # Kolmogorov and Smirnov, at 0.1 %
    torch.testing.assert_close(keys.sums(covered[None], 4)[0] - covers, summed(row, terms), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cover", [COVER, 0.0])
def test_scores_tell_no_hidden_numbers(cover: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "COVER", cover)
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(8, generator=generator, dtype=torch.float64)
    u = torch.rand(600, 8, generator=generator, dtype=torch.float64)
    keys = Keys()
    peer = Peer(keys.public())
    sent = peer.products(peer.open(keys.seal(phi.expand(SLOTS // 8, 8)), 1), u)
    np.testing.assert_allclose(keys.scores(sent, 8, 600), (u @ phi).numpy(), atol=1e-5)
    found = keys.slots(sent).reshape(-1, 8)[:600]
    told = np.abs(np.corrcoef(found[:, 0], u[:, 0].numpy())[0, 1])
    assert told < 0.2 if cover else told > 0.99


def test_all_but_keys_and_sums_is_encrypted() -> None:
    a, b = rows()
    played = learn(replace(SHORT, epochs=1), SEALED, a, b, keep=True)
    open_ = {count.kind for count in played.transcript.counts() if count.under is None}
    assert open_ == {"ftl.key", "ftl.sums"}
    assert {count.under for count in played.transcript.counts() if count.ciphertexts} == {"ckks-8192"}


def test_what_is_no_ciphertext_or_no_public_key_is_refused() -> None:
    keys = Keys()
    peer = Peer(keys.public())
    with pytest.raises(CodecError, match="1 ciphertexts came, and 2 are due"):
        peer.open(keys.seal(torch.ones(3, 4, dtype=torch.float64)), 2)
    with pytest.raises(CodecError, match="cannot be read"):
        peer.open(torch.zeros(1, 900, dtype=torch.uint8), 1)
    with pytest.raises(CodecError, match="public key"):
        Peer(torch.zeros(900, dtype=torch.uint8))
    own = keys._context.serialize(save_secret_key=True)
    with pytest.raises(CodecError, match="private"):
        Peer(torch.frombuffer(bytearray(own), dtype=torch.uint8))


def test_weights_of_nothing_are_left_out() -> None:
    keys = Keys()
    peer = Peer(keys.public())
    ones = torch.ones(4, 4, dtype=torch.float64)
    sealed = peer.open(keys.seal(ones), 1)
    row = next(forms("dot")[1].rows())
    nothing = row._replace(square=ones * 0, rows=ones * 1e-13)
    covered, covers = peer.weighed(nothing, sealed, sealed)
    torch.testing.assert_close(
        keys.sums(covered[None], 4)[0] - covers, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-5
    )


# --- going on, and rounds -------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_ends_with_the_same_bits() -> None:
    a, b = rows()
    protocol = replace(SHORT, rounds=2)
    whole = learn(protocol, OPEN, a, b).results
    kept: dict[str, tuple[int, Record]] = {}

    def keeping(name: str) -> Progress:
        def tell(number: int, half: Record, figures: Any) -> None:
            kept[name] = number, codec.decode(codec.encode(half))

        return Progress(tell=tell)

    learn(replace(protocol, epochs=2), OPEN, a, b, guest=keeping("guest"), host=keeping("host"))
    going = {name: Progress(number, half) for name, (number, half) in kept.items()}
    assert [each.number for each in going.values()] == [2, 2]
    again = learn(protocol, OPEN, a, b, **going).results
    for name in ("guest", "host"):
        assert codec.encode(again[name]) == codec.encode(whole[name])
    assert "phi" in whole["guest"] and "phi" not in whole["host"]


def test_local_rounds_save_terms_and_learn() -> None:
    a, b = rows()
    one, many = (replace(SHORT, epochs=epochs, rounds=rounds) for epochs, rounds in ((8, 1), (2, 4)))
    told: list[float] = []
    played = learn(one, OPEN, a, b, guest=Progress(tell=lambda _, __, figures: told.append(figures["loss"])))
    saving = learn(many, OPEN, a, b)
    assert played.transcript.nbytes()["ftl.host"] == 4 * saving.transcript.nbytes()["ftl.host"]
    assert told[-1] < told[0]
    assert a.y is not None
    for protocol, found in ((one, played), (many, saving)):
        scores = judge(protocol, OPEN, found.results, b.take(slice(40, None))).results["guest"]
        assert auc(a.y[40:], scores) > 0.75


def test_rows_that_are_not_in_common_count_for_phi_alone() -> None:
    a, b = rows()
    common = b.take(slice(0, 40))
    assert a.y is not None
    whole = learn(SHORT, OPEN, a, common).results
    turned = a.y.copy()
    turned[40:60] = 1 - turned[40:60]
    for other in (a.take(slice(0, 40)), replace(a, y=turned)):
        assert not torch.equal(learn(SHORT, OPEN, other, common).results["host"].weight, whole["host"].weight)
    own = b.x.copy()
    own[40:] = 5 - own[40:]
    longer = learn(SHORT, OPEN, a, side(own)).results["host"]
    same = learn(SHORT, OPEN, a, b).results["host"]
    assert not torch.equal(longer.mean, same.mean)  # only a column's scale is read off them


def test_missing_values_count_as_the_mean() -> None:
    a, b = rows()
    x = b.x.copy()
    x[::3, 2] = np.nan
    found = judge(SHORT, OPEN, learn(SHORT, OPEN, a, side(x)).results, side(x)).results["guest"]
    assert np.isfinite(found).all()
    halves = learn(SHORT, OPEN, a, side(x)).results
    x[::3, 2] = float(halves["host"].mean[2])
    np.testing.assert_allclose(judge(SHORT, OPEN, halves, side(x)).results["guest"], found, atol=1e-12)


# --- noise ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 16), clip=st.floats(0.05, 3.0))
def test_a_row_that_is_exchanged_moves_what_is_sent_by_twice_its_bound(seed: int, clip: float) -> None:
    guest, host = forms("dot", seed)
    noise = Noise(clip, 1.0, 1e-5)
    random = torch.Generator().manual_seed(seed + 1)
    other = torch.randn(4, generator=random, dtype=torch.float64) * 10

    def phi(u: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return y @ noise.shortened(u) / len(u)

    u, y = guest.u.clone(), guest.y.clone()
    u[0], y[0] = other, -y[0]
    bound = clip / len(u)
    before = phi(guest.u, guest.y)
    assert float((phi(u, y) - before).norm()) <= 2 * bound * (1 + 1e-9)
    moved = replace(guest, u=u, y=y)
    near = [each.terms(before, noise.shortened(each.u[:9])).rows for each in (guest, moved)]
    most = float(before.norm()) / 2 + guest.pull * clip
    assert float((near[0] - near[1]).norm()) <= 2 * most * (1 + 1e-9)
    theirs = host.u.clone()
    theirs[0] = other
    assert float((noise.shortened(theirs) - noise.shortened(host.u)).norm()) <= 2 * clip * (1 + 1e-9)


def test_noise_is_as_large_as_it_says_and_its_square_is_taken_off() -> None:
    wide = torch.tanh(torch.randn(4000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    host = Host(wide, wide, 4000, torch.zeros(4, 4, dtype=torch.float64), 1.0, 0.0, "dot")
    noise = Noise(0.5, 2.0, 1e-5)
    sent = noise.host(host)
    clean = noise.shortened(wide)
    assert float((sent.rows - clean).std()) == pytest.approx(1.0, rel=0.05)
    exact = clean.T @ clean / 4
    assert float((sent.square - exact).abs().max()) < 4000 / 4 * 0.15 < float(exact.diagonal().sum())
    plain = host.terms()
    assert all(torch.equal(a, b) for a, b in zip(Noise(0.5, 0.0, 1e-5).host(host), plain, strict=True))


def test_epsilon_is_told_and_is_that_of_the_accountant() -> None:
    pytest.importorskip("dp_accounting")
    a, b = rows()
    told: dict[str, list[float]] = {"guest": [], "host": []}

    def telling(name: str) -> Progress:
        return Progress(tell=lambda _, __, figures: told[name].append(figures["epsilon_sent"]))

    protocol = replace(SHORT, noise=8.0, epochs=3)
    learn(protocol, OPEN, a, b, guest=telling("guest"), host=telling("host"))
    for name, each in (("guest", 2), ("host", 1)):
        due = [epsilon([Gaussian(noise=4.0, count=each * n)], 1e-5).epsilon for n in (1, 2, 3)]
        assert told[name] == due


def test_labels_can_be_read_off_what_is_sent_open_unless_noise_is_on_it() -> None:
    a, b = rows()
    assert a.y is not None

    def leak(protocol: FTL) -> float:
        said = learn(replace(protocol, epochs=1, gamma=0.0), OPEN, a, b, keep=True).transcript.said
        sent = next(record for _, _, kind, record in said if kind == "ftl.guest")
        _, vectors = np.linalg.eigh(sent.square.numpy())
        guess = auc(a.y[:40], sent.rows.numpy() @ vectors[:, -1])  # type: ignore[index]
        return max(guess, 1 - guess)

    assert leak(SHORT) == 1.0
    assert leak(replace(SHORT, noise=30.0)) < 0.75


# --- what cannot be -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("protocol", "case", "problem"),
    [
        (SHORT, Case("multiclass", 3), "task = 'multiclass'"),
        (SHORT, Case("binary", crypto="paillier"), "crypto = 'paillier'"),
        (SHORT, Case("binary", crypto="ckks-4096"), "degree 8192"),
        (SHORT, Case("binary", hosts=("b", "c")), "one host"),
        (FTL(hidden=65), SEALED, "hidden = 65"),
        (FTL(noise=1.0), SEALED, "sends nothing open"),
    ],
)
def test_what_cannot_be_learned_is_refused(protocol: FTL, case: Case, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        protocol.check(case)


@pytest.mark.parametrize(
    "given", [{"hidden": 0}, {"lr": 0.0}, {"gamma": -1.0}, {"rounds": 0}, {"overlap": 0}, {"align": "cos"}]
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        FTL(**given)


def test_rows_that_do_not_fit_are_refused() -> None:
    a, b = rows()
    with pytest.raises(DataError, match="overlap = 40, and this side has 30 rows"):
        learn(SHORT, OPEN, a, b.take(slice(0, 30)))
    with pytest.raises(CodecError, match=r"rows is \[200, 8\], and \[300, 8\] is due"):
        learn(replace(SHORT, overlap=None), OPEN, a, b.take(slice(0, 200)))
    with pytest.raises(DataError, match="no labels"):
        learn(SHORT, OPEN, replace(a, y=None), b)
    with pytest.raises(DataError, match="0 or 1"):
        learn(SHORT, OPEN, replace(a, y=np.full(300, 2.0)), b)


def test_terms_of_the_wrong_form_are_a_mistake_of_the_sender() -> None:
    a, b = rows()
    with pytest.raises(CodecError, match="square is"):
        play(
            {
                "guest": lambda link: SHORT.guest(link, a, OPEN, Progress()),
                "host": lambda link: replace(SHORT, hidden=9).host(link, b, OPEN, Progress()),
            }
        )


# --- real data ------------------------------------------------------------------------------------------------------


def table(name: str) -> NDArray[np.float64]:
    with lzma.open(ROOT / "fate-vertical" / name, "rt") as file:
        found = np.loadtxt(file, delimiter=",", skiprows=1)
    return found[np.argsort(found[:, 0])]


def logistic(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of a logistic regression with a ridge of 1 on standardised columns, the constant last; by Newton."""
    x = np.c_[x, np.ones(len(x))]
    ridge = np.diag([1.0] * (x.shape[1] - 1) + [1e-9])
    w = np.zeros(x.shape[1])
    for _ in range(25):
        p = 1 / (1 + np.exp(-x @ w))
        w -= np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge, x.T @ (p - y) + ridge @ w)
    return w


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "fate-vertical").exists(), reason="ATOLL_DATA has no fate-vertical")
def test_default_credit_more_rows_in_common_judge_better_and_better_than_few_labels_at_the_host() -> None:
    guest, host = table("default_credit_hetero_guest.csv.xz"), table("default_credit_hetero_host.csv.xz")
    y, xa, xb = guest[:, 1], guest[:, 2:], host[:, 1:]
    order = np.random.default_rng(0).permutation(len(y))
    test, rest = order[:6000], order[6000:]
    found: dict[int, list[float]] = {}
    alone: dict[int, list[float]] = {}
    for common, seeds in ((50, 8), (200, 4), (1000, 3), (6000, 2)):
        for seed in range(seeds):
            own = np.random.default_rng(seed).permutation(rest)
            mine = own[: common + 4000]
            theirs = own[:common]
            protocol = FTL(overlap=common)
            case = Case("binary", seed=seed)
            halves = learn(protocol, case, side(xa[mine], y[mine]), side(xb[theirs])).results
            score = judge(protocol, case, halves, side(xb[test])).results["guest"]
            found.setdefault(common, []).append(auc(y[test], score))
            mean, deviation = xb[theirs].mean(0), xb[theirs].std(0) + 1e-12
            w = logistic((xb[theirs] - mean) / deviation, y[theirs])
            few = (xb[test] - mean) / deviation @ w[:-1]
            alone.setdefault(common, []).append(auc(y[test], few))
    mean_of = {common: float(np.mean(values)) for common, values in found.items()}
    print(mean_of, {common: float(np.mean(values)) for common, values in alone.items()})
    assert list(mean_of.values()) == sorted(mean_of.values())
    assert mean_of[50] > float(np.mean(alone[50])) + 0.005
    assert mean_of[6000] > 0.73


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "fate-vertical").exists(), reason="ATOLL_DATA has no fate-vertical")
def test_default_credit_is_judged_alike_under_encryption() -> None:
    guest, host = table("default_credit_hetero_guest.csv.xz"), table("default_credit_hetero_host.csv.xz")
    y, xa, xb = guest[:, 1], guest[:, 2:], host[:, 1:]
    protocol = FTL(overlap=500, epochs=20)
    test = slice(5000, 9000)
    found = []
    for case in (OPEN, SEALED):
        halves = learn(protocol, case, side(xa[:3000], y[:3000]), side(xb[:500])).results
        found.append(auc(y[test], judge(protocol, case, halves, side(xb[test])).results["guest"]))
    print(found)
    assert abs(found[0] - found[1]) < 1e-3
