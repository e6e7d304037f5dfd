"""How what a captured step changes lies in memory: what is computed stays the same."""

from __future__ import annotations

from torch import fx

from atoll.engines.graph import aten, device_of, is_call, shape_of

__all__ = ["channels_last"]

_WRITES = (
    aten.add_.Tensor,
    aten.addmm_.default,
    aten.baddbmm_.default,
    aten.addcmul_.default,
    aten.mul_.Tensor,
    aten.lerp_.Tensor,
    aten.lerp_.Scalar,
)


def channels_last(graph: fx.Graph, inputs: list[fx.Node], changed: set[int]) -> set[int]:
    """Which inputs a step rewrites that are weights of convolutions and nothing else.

    The kernels want them with channels last, and otherwise copy them for every product. Windows of one
    channel or one column stay: there is little to copy, and `purity` keeps narrow images from those kernels.
    """

    def fits(node: fx.Node, weight: fx.Node) -> bool:
        if is_call(node, aten.convolution.default, aten.convolution_backward.default):
            at = 1 if node.target is aten.convolution.default else 2
            return [i for i, each in enumerate(node.args) if each is weight] == [at]
        return is_call(node, *_WRITES) and node.args[0] is weight and node.args[1] is not weight

    found = set()
    for i in sorted(changed):
        uses = list(inputs[i].users)
        if (
            len(shape := shape_of(inputs[i]) or ()) == 4
            and shape[1] > 1
            and shape[3] > 1
            and device_of(inputs[i]) == "cpu"
            and all(fits(node, inputs[i]) for node in uses)
            and any(is_call(node, aten.convolution_backward.default) for node in uses)
        ):
            found.add(i)
    return found
