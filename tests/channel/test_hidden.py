"""Noise of clients, in numbers and in whole numbers, and sums under encryption."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.func import vmap

from atoll.channel import HE, channel
from atoll.channel.he import Keys, added
from atoll.channel.skellam import Skellam, drawn
from atoll.channel.transform import Setting
from atoll.errors import ConfigError
from atoll.tensors import leaves
from tests.channel.test_chain import federation, fitted, model, released, reply, sent

# --- noise of clients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "deviation"), [("gaussian", 1.0), ("laplace", math.sqrt(2))])
def test_local_noise_has_the_deviation_it_says(text: str, deviation: float) -> None:
    order = ",order=1" if text == "laplace" else ""
    chain = fitted(f"clip:0.5{order} | local:3,{text}")
    drawn = torch.cat([reply(chain, 0.0, number=k).values.update["w"] for k in range(40)])
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(3 * 0.5 * deviation, rel=0.03)
    heavier = 3.0 if text == "gaussian" else 6.0
    assert float(((drawn / drawn.std()) ** 4).mean()) == pytest.approx(heavier, rel=0.2)


def test_local_noise_is_the_clients_own_and_the_same_in_every_engine() -> None:
    chain = fitted("clip:0.5 | local:1")
    one, other = reply(chain, 0.0, number=1), reply(chain, 0.0, number=2)
    assert not torch.equal(one.values.update["w"], other.values.update["w"])
    alone = model("clip:0.2 | local:0.5")
    assert not torch.equal(alone, model("clip:0.2 | local:0.5", seed=2))
    for engine in ("batched", "processes"):
        torch.testing.assert_close(model("clip:0.2 | local:0.5", engine=engine), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("clip:0.5 | local:1,laplace", "bounded in the L1 norm"),
        ("clip:0.5,order=1 | local:1", "bounded in the L2 norm"),
        ("clip:0.5,order=1 | noise:1", "bound of its L2 norm"),
        ("clip:0.5 | skellam:1", "needs secagg behind it"),
        ("clip:0.5,0.5 | skellam:1 | secagg", "a fixed bound"),
        ("clip:0.5 | secagg | skellam:1", "stands behind secagg"),
        ("clip:0.5 | skellam:0 | secagg", "must be above 0"),
        ("clip:0.5 | skellam:1,1 | secagg", "lost = 1.0"),
        ("clip:0.5 | skellam:1e4 | secagg:20", "the ring has 32"),
    ],
)
def test_noise_stands_where_it_is_accounted_for(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        fitted(text)


def test_a_norm_of_another_order_is_bounded() -> None:
    found = sent(channel("clip:2,order=1").transforms[0], reply(fitted("clip:9"), 1.0).values)  # type: ignore[attr-defined]
    assert sum(float(v.abs().sum()) for v in leaves(found.values)) == pytest.approx(2.0, rel=1e-5)


# --- noise in whole numbers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deviation", [0.7, 3.0, 250.0])
def test_skellam_numbers_have_the_moments_of_skellam_numbers(deviation: float) -> None:
    found = vmap(lambda key: drawn(key, torch.Size([50_000]), deviation))(torch.arange(4) * 977)
    numbers = found.double().flatten()
    variance = deviation**2
    assert float(numbers.mean()) == pytest.approx(0, abs=5 * deviation / math.sqrt(200_000))
    assert float(numbers.var()) == pytest.approx(variance, rel=0.02)
    excess = float(((numbers / numbers.std()) ** 4).mean()) - 3
    assert excess == pytest.approx(
        1 / variance, abs=0.1 + 0.2 / variance
    )  # kurtosis of Skellam: 3 + 1 / variance
    if deviation < 1:  # chances by the series of Poisson differences
        rate = variance / 2
        zero = sum(math.exp(-2 * rate) * rate ** (2 * k) / math.factorial(k) ** 2 for k in range(40))
        assert float((numbers == 0).double().mean()) == pytest.approx(zero, rel=0.01)


def test_shares_of_noise_add_up_to_what_hides_one_client() -> None:
    chain = fitted("clip:0.5 | skellam:2 | secagg:16", cohort=20)
    noise, mask = chain.transforms[1:]
    assert isinstance(noise, Skellam)
    step, size = mask.step, 1000  # type: ignore[attr-defined]
    replies = [reply(chain, 0.001, number=k) for k in range(20)]
    for each in replies:
        assert all(int(v.min()) >= 0 for v in leaves(each.values.update))
    found = released(chain, replies) * 20
    assert float(found.mean()) == pytest.approx(0.02, abs=0.2)
    assert float(found.std()) == pytest.approx(2 * (0.5 + math.sqrt(size) * step), rel=0.1)
    lost = fitted("clip:0.5 | skellam:2,0.5 | secagg:16", cohort=20).transforms[1]
    assert isinstance(lost, Skellam)
    assert lost.deviation(step, size) == pytest.approx(noise.deviation(step, size) * math.sqrt(2))


def test_rounding_moves_one_client_by_no_more_than_what_noise_is_made_for() -> None:
    chain = fitted("clip:0.5 | skellam:0.0001 | secagg:8", cohort=4)
    noise, mask = chain.transforms[1:]
    l1, l2 = noise.sensitivity(mask.step, 1000)  # type: ignore[attr-defined]
    plain = fitted("clip:0.5 | secagg:8", cohort=4, equal=True)
    for seed in range(5):
        value = torch.randn(1000, generator=torch.Generator().manual_seed(seed))
        whole = reply(plain, value, number=seed).values.update["w"].double() - mask.top / 2  # type: ignore[attr-defined]
        assert float(whole.norm()) <= l2
        assert float(whole.abs().sum()) <= l1


# --- encryption -----------------------------------------------------------------------------------------------------


def test_a_sum_of_ciphertexts_is_the_sum_and_the_server_cannot_read_it() -> None:
    pytest.importorskip("tenseal")
    keys = Keys(8192)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(3, 5000)) * 0.1
    total = None
    for vector in vectors:
        total = added(keys.public, total, keys.encrypt(vector))
    assert total is not None
    found = keys.decrypt([each.serialize() for each in total], 5000)
    np.testing.assert_allclose(found, vectors.sum(0), atol=1e-4)
    assert not keys.public.is_private()
    with pytest.raises(ValueError, match="secret"):
        total[0].decrypt()


def test_a_run_under_encryption_learns_what_a_plain_one_does() -> None:
    pytest.importorskip("tenseal")
    hidden = federation("he", rounds=1)
    run = hidden.fit(progress=False)
    torch.testing.assert_close(hidden.state.params.flat(), model(rounds=1), rtol=0, atol=1e-4)
    size = hidden.state.params.size() + 1
    assert run.rounds[0].bytes_up > 5 * 14 * 4 * size  # what encryption costs is counted


def test_encryption_is_for_small_models() -> None:
    pytest.importorskip("tenseal")
    with pytest.raises(ConfigError, match="at most 1,000,000"):
        HE().fitted((), Setting(size=1_000_001))
    settings: dict[str, Any] = {"method": "fedora"}
    with pytest.raises(ConfigError):
        federation("he", **settings)
