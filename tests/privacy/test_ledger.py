"""The ledger says as much as was spent, or more: whatever kills the process, and whoever calls."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from atoll.errors import BudgetError, ConfigError
from atoll.privacy import Correlated, Fixed, Gaussian, Ledger, Poisson, Terms, epsilon, lines, parallel

pytest.importorskip("dp_accounting")

TERMS = Terms(level="user", delta=1e-6, population=100_000)
ROUND = Gaussian(noise=1.0, sampling=Poisson(0.01))


def forked(program: Callable[[], None]) -> int:
    """`program` in a process of its own, which is gone when it returns or is killed."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        program()
        code = 0
    finally:
        os._exit(code)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "privacy.jsonl"


# --- what kills a process -------------------------------------------------------------------------------------------


def test_killed_at_any_moment_it_never_says_too_little(path: Path) -> None:
    """Each process says a round when its charge has returned, as a server would publish; it is killed while it does."""
    random.seed(7)
    published = 0
    for lives in range(1, 13):
        reader, writer = os.pipe()

        def serve(out: int = writer) -> None:
            with Ledger.begin(path, TERMS) as ledger:
                for number in range(10**6):
                    ledger.charge(ROUND, number)
                    os.write(out, b".")

        pid = forked(serve)
        os.close(writer)
        first = os.read(reader, 1)
        time.sleep(random.random() * 0.03)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        published += len(first) + len(b"".join(iter(lambda: os.read(reader, 65536), b"")))  # noqa: B023
        os.close(reader)
        ledger = Ledger.read(path)
        assert published <= len(ledger.charges) <= published + lives
    assert published > 12
    assert ledger.spent().epsilon >= epsilon([ROUND] * published, 1e-6).epsilon


def test_cut_off_anywhere(path: Path) -> None:
    with Ledger.begin(path, TERMS) as ledger:
        ledger.charge(ROUND, 1)
        whole = path.read_bytes()
        ledger.charge(ROUND, 2, 3)
    full = path.read_bytes()
    for end in sorted({*range(len(whole), len(full), 7), *range(len(full) - 3, len(full) + 1)}):
        path.write_bytes(full[:end])
        torn = len(whole) < end < len(full) - 1
        looked = Ledger.read(path)
        with Ledger.begin(path, TERMS) as ledger:
            for each in (looked, ledger):
                assert len(each.charges) == (1 if end < len(full) - 1 else 2)  # all but its end: it counts
                assert each.torn == torn
                assert ("1 line found cut off" in each.statement()) == torn
            ledger.charge(ROUND, 2, 4)
        again = Ledger.read(path)
        assert [each.attempt for each in again.charges][-1] == 4
        assert again.torn == torn
        assert path.read_bytes().startswith(full[:end] if end in (len(whole), len(full)) else whole)


def test_cut_off_while_it_was_made_it_is_not_there(path: Path) -> None:
    pid = forked(lambda: os.kill(os.getpid(), signal.SIGKILL) if Ledger.begin(path, TERMS) else None)
    os.waitpid(pid, 0)
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert Ledger.read(path).charges == []


def test_a_charge_is_on_the_disk_before_it_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fsync

    def watched(file: int) -> None:
        sync(file)
        synced.append(os.fstat(file).st_size)

    monkeypatch.setattr(os, "fsync", watched)
    with Ledger.begin(path, TERMS) as ledger:
        assert len(synced) == 2  # the file and its directory
        ledger.charge(ROUND, 1)
        assert synced[-1] == path.stat().st_size
        assert len(synced) == 3


def test_a_full_disk_stops_the_round_and_not_the_ledger(path: Path) -> None:
    with Ledger.begin(path, TERMS) as ledger:
        ledger.charge(ROUND, 1)
    room = path.stat().st_size + 20

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with Ledger.begin(path, TERMS) as ledger:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            with contextlib.suppress(BudgetError):
                ledger.charge(ROUND, 2)
                os._exit(9)
            assert len(ledger.charges) == 1
            assert path.stat().st_size == room - 20
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            ledger.charge(ROUND, 2, 1)

    assert os.waitpid(forked(fill), 0)[1] == 0
    ledger = Ledger.read(path)
    assert [(each.round, each.attempt) for each in ledger.charges] == [(1, 0), (2, 1)]
    assert ledger.torn == 0


def test_one_process_at_a_time(path: Path) -> None:
    with Ledger.begin(path, TERMS), pytest.raises(BudgetError, match="another process writes"):
        Ledger.begin(path, TERMS)
    Ledger.begin(path, TERMS).close()


# --- what was changed -------------------------------------------------------------------------------------------------


def test_what_was_changed_or_taken_out_is_noticed(path: Path) -> None:
    with Ledger.begin(path, TERMS) as ledger:
        for number in range(4):
            ledger.charge(ROUND, number)
    whole = path.read_bytes().splitlines(keepends=True)
    damaged = {
        "changed": [whole[0], whole[1].replace(b'"noise":1.0', b'"noise":9.0'), *whole[2:]],
        "taken out": [*whole[:2], *whole[3:]],
        "twice": [*whole, whole[-1]],
        "without terms": whole[1:],
        "no text": [*whole[:3], b"\x00\xff\n", *whole[3:]],
        "empty": [],
    }
    for name, found in damaged.items():
        path.write_bytes(b"".join(found))
        for use in (lambda: Ledger.read(path), lambda: Ledger.begin(path, TERMS)):
            with pytest.raises(BudgetError) as error:
                use()
            assert "damaged" in str(error.value) or "no ledger" in str(error.value), name
            assert error.value.exit_code == 2
    with pytest.raises(BudgetError, match="No such file"):
        Ledger.read(path.with_name("other"))


def test_a_line_of_another_kind_is_refused(path: Path) -> None:
    line, before = lines._line("", msgspec.json.encode(TERMS))
    more, _ = lines._line(before, b'{"type":"refund","round":1}')
    path.write_bytes(line + more)
    with pytest.raises(BudgetError, match="line 2 cannot be read"):
        Ledger.read(path)


# --- what is spent ----------------------------------------------------------------------------------------------------


def test_every_charge_counts(path: Path) -> None:
    with Ledger.begin(path, TERMS) as ledger:
        for attempt in range(2):
            for number in range(3):
                ledger.charge(ROUND, number, attempt)
            ledger.charge(ROUND, 2, attempt)
        assert ledger.spent() == epsilon([ROUND] * 8, 1e-6)
    assert Ledger.read(path).spent() == epsilon([ROUND] * 8, 1e-6)


def test_the_round_that_would_exceed_the_budget_is_refused(path: Path) -> None:
    event = Gaussian(noise=20.0)
    terms = msgspec.structs.replace(TERMS, epsilon=1.0)
    with Ledger.begin(path, terms) as ledger:
        number = 0
        with contextlib.suppress(BudgetError):
            for number in range(100):
                before = path.read_bytes()
                ledger.charge(event, number)
        with pytest.raises(BudgetError, match=rf"round {number} would spend more than epsilon = 1 ") as error:
            ledger.charge(event, number)
        assert error.value.hint
        assert path.read_bytes() == before
        found = [epsilon([event] * (number + more), 1e-6, step=5e-4) for more in (0, 1)]
        assert found[0].epsilon <= 1 < found[1].epsilon
        assert found[0].rdp is not None and found[0].rdp > 1  # RDP alone would have stopped before
        with pytest.raises(BudgetError):  # a larger event is beyond it all the more
            ledger.charge(Gaussian(noise=0.1), 99)
        with pytest.raises(BudgetError):
            ledger.charge(Gaussian(noise=0.0), 99)
        ledger.charge(Gaussian(noise=1e6), 99)  # and one that costs nothing is not
        with pytest.raises(BudgetError):
            ledger.charge(event, 100)
    assert len(ledger.charges) == number + 1
    with Ledger.begin(path, terms) as ledger, pytest.raises(BudgetError):
        ledger.charge(event, 99)


def test_what_is_spent_already_cannot_begin(path: Path) -> None:
    with Ledger.begin(path, TERMS) as ledger:
        ledger.charge(Gaussian(noise=0.5), 1)
    for terms, said in (
        (msgspec.structs.replace(TERMS, epsilon=1.0), "epsilon is None there and 1.0 here"),
        (msgspec.structs.replace(TERMS, level="record"), "level is user there and record here"),
        (msgspec.structs.replace(TERMS, delta=1e-7), "delta is 1e-06 there and 1e-07 here"),
    ):
        with pytest.raises(BudgetError, match=said):
            Ledger.begin(path, terms)
    spent = path.with_name("spent")
    first, before = lines._line("", msgspec.json.encode(msgspec.structs.replace(TERMS, epsilon=1.0)))
    charge = b'{"type":"charge","round":1,"attempt":0,"event":{"type":"gaussian","noise":0.5}}'
    spent.write_bytes(first + lines._line(before, charge)[0])
    with pytest.raises(BudgetError, match="is spent: epsilon = "):
        Ledger.begin(spent, msgspec.structs.replace(TERMS, epsilon=1.0))


def test_a_stream_is_paid_for_once_and_no_round_of_it_is_released_twice(path: Path) -> None:
    stream = Correlated(matrix="tree", noise=20.0, rounds=3, separation=3, stream="a")
    terms = msgspec.structs.replace(TERMS, epsilon=epsilon([stream], 1e-6).epsilon + 0.01)
    with Ledger.begin(path, terms) as ledger:
        ledger.charge(stream, 1)
        first = ledger.spent()
        ledger.charge(stream, 2)
        assert ledger.spent() == first
        with pytest.raises(BudgetError, match="round 2 of stream a was charged before"):
            ledger.charge(stream, 2, 1)
    with Ledger.begin(path, terms) as ledger:
        with pytest.raises(BudgetError, match="round 1 of stream a was charged before"):
            ledger.charge(stream, 1, 1)
        with pytest.raises(BudgetError, match="another mechanism"):
            ledger.charge(msgspec.structs.replace(stream, noise=30.0), 3)
        ledger.charge(stream, 3)
        with pytest.raises(BudgetError, match="3 rounds, all of them used"):
            ledger.charge(stream, 4)
        with pytest.raises(BudgetError, match="would spend more"):
            ledger.charge(msgspec.structs.replace(stream, stream="b"), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": 1e-5}, "delta = 1e-05 says nothing about one of 100,000"),
        ({"delta": 0.0}, "delta cannot be 0.0"),
        ({"epsilon": 0.0}, "epsilon cannot be 0.0"),
        ({"epsilon": float("inf")}, "epsilon cannot be inf"),
    ],
)
def test_terms_that_promise_nothing(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        msgspec.structs.replace(TERMS, **changes)


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_statement_says_it_all_in_a_sentence(path: Path) -> None:
    with Ledger.begin(path, TERMS) as ledger:
        assert ledger.statement().startswith("nothing was released")
        for number in range(10):
            ledger.charge(ROUND, number)
        said = ledger.statement()
        assert said == (
            f"epsilon = {ledger.spent().epsilon:.4g} at delta = 1e-06 for every user, who is there or not"
            " (add-remove), after 10 rounds with Poisson sampling at rate 0.01, by PLD"
        )
        ledger.charge(Gaussian(noise=9.0, sampling=Fixed(1000, 100_000)), 10)
        assert "who is exchanged for another (replace-one)" in ledger.statement()
        ledger.charge(ROUND, 11, private=False)
        assert ledger.statement().startswith(
            "no promise: noise followed from a seed; were it secret, epsilon = "
        )


def test_records_of_several_clients_compose_in_parallel_and_users_do_not(tmp_path: Path) -> None:
    terms = msgspec.structs.replace(TERMS, level="record")
    ledgers = []
    for client in range(3):
        with Ledger.begin(tmp_path / f"{client}.jsonl", terms) as ledger:
            for number in range(client + 1):
                ledger.charge(Gaussian(noise=5.0), number)
            ledgers.append(ledger)
    assert parallel(ledgers) == ledgers[2].spent().epsilon > ledgers[1].spent().epsilon
    assert "for every record, which is there or not" in ledgers[0].statement()
    with (
        Ledger.begin(tmp_path / "users.jsonl", TERMS) as users,
        pytest.raises(ConfigError, match="users do not"),
    ):
        parallel([*ledgers, users])


def test_closed_it_charges_nothing(path: Path) -> None:
    Ledger.begin(path, TERMS).close()
    with pytest.raises(BudgetError, match="not open for writing"):
        Ledger.read(path).charge(ROUND, 1)
    with Ledger.begin(path, TERMS) as ledger, pytest.raises(ConfigError, match="round -1"):
        ledger.charge(ROUND, -1)
