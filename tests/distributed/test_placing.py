"""Which device workers get: one each, one for all, or none, and what cannot be is said before anything starts."""

from __future__ import annotations

import pytest
import torch

from atoll.distributed import parse, placing
from atoll.errors import ConfigError, EngineError


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, as far as counting goes."""
    monkeypatch.setattr(placing, "gpus", lambda: 2)


def test_asking_starts_no_cuda() -> None:
    placing.device_of("auto")
    assert not torch.cuda.is_initialized()  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("two")
def test_each_worker_has_a_gpu_of_its_own_unless_one_is_named() -> None:
    own, one = placing.device_of("auto"), placing.device_of("cuda:1")
    assert (own, one) == (torch.device("cuda"), torch.device("cuda:1"))
    assert (placing.each_its_own(own), placing.each_its_own(one)) == (True, False)
    assert (placing.backend(own), placing.backend(one)) == ("cpu:gloo,cuda:nccl", "gloo")
    placing.check(own, 2, parse("fsdp"))
    placing.check(one, 5, parse("ring"))
    with pytest.raises(ConfigError, match="workers = 3, and there are 2 GPUs"):
        placing.check(own, 3, parse("ddp"))
    with pytest.raises(ConfigError, match="'tensor:2' needs a GPU for each worker"):
        placing.check(one, 2, parse("tensor:2"))
    with pytest.raises(ConfigError, match="there are 2 GPUs"):
        placing.device_of("cuda:2")


def test_processes_are_not_forked_from_one_that_has_used_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    placing.check_forks(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    placing.check_forks(torch.device("cpu"))
    with pytest.raises(EngineError, match="has used CUDA"):
        placing.check_forks(torch.device("cuda"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "meta"])
def test_what_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=repr(name)):
        placing.device_of(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said() -> None:
    with pytest.raises(ConfigError, match="torch finds no GPU"):
        placing.device_of("cuda")
