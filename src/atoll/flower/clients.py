"""Clients that are Flower's, in an Atoll run on this machine: whoever moves over keeps their client code for now.

A `NumPyClient` is code that trains, and no function that an engine could take apart. So it may stand in for a client
half that sends its change and remembers nothing, which is FedAvg's, and everything on the server's side is as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch

from atoll.codec.header import DTYPES
from atoll.contract import Answer, Channel, Gathering, Job, Memories, Method, Outcome, Reducer, Reply
from atoll.data import FederatedData
from atoll.engines import Engine
from atoll.errors import ConfigError, EngineError
from atoll.methods import METHODS, FedAvg, FedOpt
from atoll.methods.parts.buffers import moved
from atoll.metrics import counted
from atoll.network.elsewhere import Elsewhere
from atoll.network.wire import DataForm, Field
from atoll.rounds.adapting import Rule
from atoll.rounds.play import Simulation
from atoll.settings import Settings
from atoll.tensors import Record

__all__ = ["NumPyClients"]

_HALF = ("begin", "step", "gradient", "finish", "solver")
"""What a client half is made of."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class NumPyClients:
    """Flower's NumPyClients, as the clients of a federation: ``Federation(model, nodes.data, nodes=nodes)``.

    Args:
        client_fn: gives a client, told apart by ``context.node_config["partition-id"]``; or a mapping or sequence of
            them.
        clients: how many there are, for a function.
        inputs: the shape of a sample.
        classes: how many; None for a number to predict.
        dtype: of inputs.

    A client has ``fit(parameters, config)``, which returns (parameters, samples, metrics), and perhaps
    ``evaluate(parameters, config)``, which returns (loss, samples, metrics), with every metric that the run measures,
    such as "accuracy", among them. Parameters are arrays in the order of the model's ``state_dict()``; `config` says
    "server_round", "lr" and "local_epochs". Random numbers that clients draw are their own: only they can repeat a run.

    Raises ConfigError, once a federation is made, for a method with a client half of its own.
    """

    def __init__(
        self,
        client_fn: Callable[[Any], Any] | Mapping[str, Any] | Sequence[Any],
        clients: int | None = None,
        *,
        inputs: Sequence[int],
        classes: int | None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if callable(client_fn):
            if clients is None:
                raise ConfigError("nobody has said how many clients a function makes", hint="clients=10")
            names, made = [f"partition-{at}" for at in range(clients)], dict[int, Any]()
        else:
            named = (
                client_fn
                if isinstance(client_fn, Mapping)
                else {f"client {k}": c for k, c in enumerate(client_fn)}
            )
            names, made = [*named], dict(enumerate(named.values()))
        self._make, self._made = client_fn, made
        targets = Field(name="", dtype="F32" if classes is None else "I64", shape=())
        form = DataForm(
            inputs=(Field(name="", dtype=_CODES[dtype], shape=tuple(inputs)),), targets=targets, classes=classes,
            train=1, test=1,
        )  # fmt: skip
        self.data = Elsewhere(len(names), form, "clients of Flower's")
        for at, name in enumerate(names):
            self.data.welcome(at, name, form)

    def client(self, number: int) -> Any:
        """The client with this number.  Raises ConfigError for what is none."""
        if number not in self._made:
            assert callable(self._make)
            config = {"partition-id": number, "num-partitions": len(self.data)}
            context = SimpleNamespace(node_id=number, node_config=config, run_config={}, state={}, run_id=0)
            self._made[number] = self._make(context)
        found = self._made[number]
        if not callable(getattr(found, "fit", None)):
            raise ConfigError(
                f"{self.data.names[number]} is a {type(found).__name__}, which has no fit",
                hint="give NumPyClients themselves, before .to_client()",
            )
        return found

    # --- as `atoll.assembly.Nodes` ----------------------------------------------------------------------------

    def engine(
        self, tasks: Sequence[Any], data: FederatedData, device: torch.device, settings: Settings
    ) -> Engine:
        return _Calling(tasks[0], data, device, self)

    def rounds(
        self, settings: Settings, parts: tuple[Any, ...], channel: Channel | None, rule: Rule | None
    ) -> Simulation:
        if not _alike(parts[0]):
            able = ", ".join(name for name, kind in METHODS.items() if _alike(kind()))
            raise ConfigError(
                f"{type(parts[0]).__name__} has a client half of its own, and Flower's clients bring theirs",
                hint=f"methods whose clients do what FedAvg's do: {able}",
            )
        for key, value in (("channel", channel), ("adaptive", rule), ("devices", settings.devices)):
            if value is not None:
                raise ConfigError(
                    f"{key} = {getattr(settings, key)!r} is for clients of Atoll's", hint=f"leave {key} out"
                )
        return Simulation(*parts)


def _alike(method: Method) -> bool:
    """Whether a method's client half is FedAvg's, and clients predict with the model that all have."""
    kind, known = type(method), (FedAvg, FedOpt)
    usual = all(getattr(kind, name, None) in [getattr(each, name) for each in known] for name in _HALF)
    return usual and not (getattr(method, "keep_optimizer", False) or method.personalised or method.distils)


class _Calling(Engine):
    """Calls `fit` and `evaluate`, one client after the other."""

    name: ClassVar[str] = "numpy clients"

    def __init__(self, task: Any, data: FederatedData, device: torch.device, clients: NumPyClients) -> None:
        super().__init__(task, data, device)
        self.clients = clients
        for name, metric in task.metrics.items():
            if metric.whole is not None or metric.after is not None:
                raise ConfigError(
                    f"{name} is a figure of a set of samples, and clients tell means",
                    hint='metrics="accuracy"',
                )
        self.order = list(task.module.state_dict())
        params, buffers = task.initial()
        if extra := {*self.order} ^ {*params, *buffers}:
            raise ConfigError(
                f"Flower's clients train all of a model, and {min(extra)} of this one is not trained",
                hint="leave adapter, base and requires_grad = False out",
            )

    def run(self, job: Job, memories: Memories) -> tuple[Reducer, list[Outcome]]:
        gathering = Gathering(job)
        for number in job.clients:
            client = self.clients.client(number)
            order = job.order(number)
            received = order.received
            known = {**received.params, **received.buffers}
            arrays = [known[name].detach().cpu().numpy().copy() for name in self.order if name in known]
            config: dict[str, Any] = {"server_round": job.round}
            if job.work.program == "train":
                plan = job.program.plan()
                config |= {"lr": float(received.lr), "local_epochs": order.epochs or plan.epochs}
                reply = self._fitted(number, self._called(job, number, client.fit, arrays, config), received)
            elif callable(getattr(client, "evaluate", None)):
                reply = self._judged(number, self._called(job, number, client.evaluate, arrays, config))
            else:
                continue
            gathering.deliver(Answer(number, reply))
        return gathering.result()

    def _called(self, job: Job, number: int, function: Callable[..., Any], *given: Any) -> Any:
        """What a client's own code returns.  Raises EngineError for what it raises."""
        try:
            return function(*given)
        except Exception as error:
            raise EngineError(
                f"round {job.round}, {self.data.names[number]}: {function.__name__} raised {type(error).__name__}:"
                f" {error}"
            ) from error

    def _fitted(self, number: int, found: Any, received: Record) -> Reply:
        arrays, count, metrics = self._three(number, found, "fit", "(parameters, samples, metrics)")
        names = [name for name in self.order if name in received.params or name in received.buffers]
        if len(arrays) != len(names):
            raise self._wrong(
                number, f"fit gave {len(arrays)} arrays, and the model has {len(names)} tensors"
            )
        tensors = {}
        for name, array in zip(names, arrays, strict=True):
            due = received.params[name] if name in received.params else received.buffers[name]
            tensor = torch.as_tensor(np.asarray(array)).to(due.dtype)
            if tensor.shape != due.shape:
                raise self._wrong(
                    number, f"fit gave {name} as {list(tensor.shape)}, and it is {list(due.shape)}"
                )
            tensors[name] = tensor
        params = received.params.map_names(lambda name, value: tensors[name] - value)
        buffers = received.buffers.map_names(lambda name, value: tensors[name])
        told: dict[str, Any] = {"count": torch.tensor(float(count))}
        loss = metrics.get("train_loss", metrics.get("loss"))
        if loss is not None:
            told["loss"] = torch.tensor(float(loss) * count)
        values = Record(update=params, **moved(buffers, received.buffers))
        return Reply(values, torch.tensor(float(count)), Record(told))

    def _judged(self, number: int, found: Any) -> Reply:
        loss, count, metrics = self._three(number, found, "evaluate", "(loss, samples, metrics)")
        told = {
            "count": torch.tensor(float(count)),
            "loss": torch.tensor(float(loss) * count, dtype=torch.float64),
        }
        for name in self.task.metrics:
            if name not in metrics:
                raise self._wrong(
                    number, f"evaluate tells no {name!r} (it has {', '.join(metrics) or 'nothing'})"
                )
            told[name] = torch.tensor(float(metrics[name]) * count, dtype=torch.float64)
            told[counted(name)] = torch.tensor(float(count))
        return Reply(Record(), torch.tensor(float(count)), Record(told))

    def _three(self, number: int, found: Any, what: str, form: str) -> tuple[Any, int, Mapping[str, Any]]:
        if not isinstance(found, tuple | list) or len(found) != 3 or not isinstance(found[2], Mapping):
            raise self._wrong(number, f"{what} does not return {form}")
        if int(found[1]) < 1:
            raise self._wrong(number, f"{what} says that it used {found[1]} samples")
        return found[0], int(found[1]), found[2]

    def _wrong(self, number: int, what: str) -> EngineError:
        return EngineError(
            f"{self.data.names[number]}: {what}",
            hint="a NumPyClient as Flower 1.42 documents it, of this very model",
        )
