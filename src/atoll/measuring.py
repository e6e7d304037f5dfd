"""What is measured of outputs: a loss and metrics, as they are asked for, sample by sample and summed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from atoll.calling import main
from atoll.errors import AtollError, ConfigError
from atoll.losses import ACCURACIES, LOSSES, Loss
from atoll.masking import Masking
from atoll.measures import Better
from atoll.metrics import Confusion, Metric, Metrics, chosen
from atoll.tensors import Record
from atoll.thrift import Thrift

if TYPE_CHECKING:
    from atoll.task import Batch

__all__ = ["Measuring"]


class Measuring:
    """The half of a task that knows no module: what outputs and targets come to.

    Args:
        loss, metrics: see `atoll.task.Task`.
    """

    _thrift: Thrift

    def __init__(self, loss: str | Loss, metrics: Metrics | None) -> None:
        self.masking = Masking.parse(loss) if isinstance(loss, str) else None
        if self.masking is not None:
            loss = "cross_entropy"
        if isinstance(loss, str) and loss not in LOSSES:
            known = f"known: {', '.join(LOSSES)}, masked:SHARE, or a function"
            raise ConfigError(f"unknown loss {loss!r}", hint=known)
        self.loss_name = loss if isinstance(loss, str) else getattr(loss, "__name__", "custom")
        self.loss_function: Loss = LOSSES[loss] if isinstance(loss, str) else loss
        self._known_loss = isinstance(loss, str)
        found = chosen(metrics, self.loss_name)
        self.metrics: dict[str, Metric] = {n: m for n, m in found.items() if isinstance(m, Metric)}
        self.confusion = next((each for each in found.values() if isinstance(each, Confusion)), None)
        self._gets_all = {n for n, each in self.metrics.items() if not each.of_tensors}
        self._wrapped: Callable[[Tensor], Any] = lambda outputs: outputs
        if self.loss_name in ("cross_entropy", "bce"):
            self.metrics.setdefault("accuracy", Metric(ACCURACIES[self.loss_name], "higher", over="tokens"))

    @property
    def loss_text(self) -> str:
        """The loss as it is written."""
        return self.loss_name if self.masking is None else self.masking.text

    @property
    def better(self) -> dict[str, Better | None]:
        """Which of two values of a metric is the better one, None where nobody has said so."""
        return {name: metric.better for name, metric in self.metrics.items()}

    def judged(self, outputs: Tensor, targets: Tensor) -> Record:
        """Per-sample loss and metrics of outputs, wherever they come from (see `Metric.taken`, `Confusion.taken`)."""
        return self._measured(self._wrapped(outputs), targets)

    def _measured(self, given: Any, targets: Tensor) -> Record:
        outputs = main(given)
        found = {
            n: m.taken(n, given if n in self._gets_all else outputs, targets) for n, m in self.metrics.items()
        }
        if self.confusion is not None:
            found[self.confusion.name] = self.confusion.taken(outputs, targets)
        return Record(loss=self.losses(given, targets), **found)

    def losses(self, given: Any, targets: Tensor) -> Tensor:
        """The loss of each sample [b]; one of our own in single precision, in however many bits outputs are."""
        if self._known_loss:
            return self._per_sample(self.loss_function, self._thrift.single(main(given)), targets)
        with self._thrift.cast(targets.device):
            found = self._per_sample(self.loss_function, given, targets)
        return found if self._thrift.precision == "float32" else found.float()

    def summed(self, measured: Record, batch: Batch) -> Record:
        """The totals of per-sample measures of a batch (see `Metric.summed`)."""
        sums = {"loss": torch.sum(measured.loss * batch.mask)}
        for name, metric in self.metrics.items():
            sums |= metric.summed(name, measured[name], batch.mask)
        if self.confusion is not None:
            name = self.confusion.name
            sums[name] = self.confusion.summed(measured[name], batch.mask)
        return Record(count=batch.mask.sum(), **sums)

    @staticmethod
    def _per_sample(function: Loss, outputs: Any, targets: Tensor) -> Tensor:
        values = function(outputs, targets)
        if values.ndim == 0 or values.shape[0] != targets.shape[0]:
            raise ConfigError(
                f"{Measuring._name(function)} returned shape {tuple(values.shape)} for {targets.shape[0]} samples",
                hint="return one value per sample (reduction='none'); Atoll takes the means",
            )
        return values.reshape(values.shape[0], -1).mean(1) if values.ndim > 1 else values

    @staticmethod
    def _name(function: Loss) -> str:
        return getattr(function, "__name__", "the loss")

    # --- what does not fit --------------------------------------------------------------------------------------

    def _check_measures(self, given: Any, targets: Tensor) -> None:
        """Refuse a loss or a metric that cannot take such outputs and targets, whatever it raises."""
        what = self._name(self.loss_function)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what broadcasts is refused by `_check_rows`
                self.losses(given, targets)
                for name, metric in self.metrics.items():
                    what = f"the metric {name}"
                    metric.taken(name, given if name in self._gets_all else main(given), targets)
                if self.confusion is not None:
                    self.confusion.taken(main(given), targets)
        except AtollError:
            raise
        except Exception as error:
            o, t = (
                f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}"
                for each in (main(given), targets)
            )
            raise ConfigError(
                f"{what} cannot compare outputs {o} with targets {t}: {type(error).__name__}: {error}",
                hint="it gets both as they are: what it needs otherwise it must convert, as in targets.float()",
            ) from error

    def _check_rows(self, given: Any, targets: Tensor) -> None:
        """Refuse losses and measures that broadcast: outputs [n, 1] beside targets [n] are [n, n] to torch.

        Two samples tell: what one comes to must not depend on the other, where the shapes invite that.
        """
        outputs = main(given)
        if outputs.shape == targets.shape or outputs.numel() != targets.numel():
            return
        changed, moved = targets.clone(), outputs.clone()
        far = targets[1] + 1e3 if targets.is_floating_point() else (targets[1] == 0).to(targets.dtype)
        changed[1], moved[1] = far, outputs[1] + 1e3
        looked_at = [self.loss_function] if self._known_loss or given is outputs else []
        looked_at += [
            each.sample
            for name, each in self.metrics.items()
            if each.whole is None and (given is outputs or name not in self._gets_all)
        ]
        for function in looked_at:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's own word on it
                one, other = (
                    self._per_sample(function, o, t)[0] for o, t in ((outputs, targets), (moved, changed))
                )
            if not torch.equal(one.nan_to_num(), other.nan_to_num()):
                raise ConfigError(
                    f"{self._name(function)} compares every output with every target: outputs of shape "
                    f"{tuple(outputs.shape)} and targets of shape {tuple(targets.shape)} broadcast",
                    hint="give both one shape: targets [n, 1], or a model that ends in nn.Flatten(0)",
                )
