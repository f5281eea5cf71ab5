# SPDX-License-Identifier: Apache-2.0
"""What evidence the search of grids wants of a graph."""

from collections.abc import Mapping, Sequence
from math import prod

from qhyvit_onnx.facts import Bridge
from qhyvit_onnx.kernels.observers import TensorStats
from qhyvit_onnx.kernels.probes import LayerProbe, Probes, ProductProbe, Stack, Window
from qhyvit_onnx.passes._sources import sources_of
from qhyvit_onnx.units import CONVOLUTIONS, LAYERS, Kind, Unit, is_softmax

GRAM_NUMBERS = 1 << 24
"""Numbers that the grams of one layer may hold (64 MiB): one group may read 4,096."""


def probes_of(
    units: Sequence[Unit], stats: Mapping[str, TensorStats], bridges: tuple[Bridge, ...]
) -> Probes:
    """Return where to take evidence: of every tensor that gets a grid, every layer and product.

    The grid of a softmax is fixed, and a tensor without statistics gets none.
    """
    layers = [unit for unit in units if unit.kind in LAYERS and not too_wide(unit)]
    products = [unit for unit in units if unit.kind is Kind.PRODUCT]
    crossed = (name for bridge in bridges for name in bridge.outputs)
    return Probes(
        tensors={
            name: stats[name].axis
            for name, tensor in sources_of(units).items()
            if name in stats and not is_softmax(tensor)
        },
        layers={unit.name: _layer(unit) for unit in layers},
        products={
            unit.name: ProductProbe(unit.inputs[0].name, unit.inputs[1].name, unit.output.name)
            for unit in products
        },
        gains=tuple(dict.fromkeys([*(unit.output.name for unit in units), *crossed])),
    )


def too_wide(unit: Unit) -> bool:
    """Tell whether the grams of a layer would hold too many numbers."""
    groups, width = _gram_dims(unit)
    return groups * width**2 > GRAM_NUMBERS


def _gram_dims(unit: Unit) -> tuple[int, int]:
    """Return the groups of a layer and how many numbers one output of each reads."""
    assert unit.weight is not None
    shape = unit.weight.shape
    if unit.kind in CONVOLUTIONS:
        return int(unit.node.attrs.get("group", 1)), prod(shape[1:])
    if unit.kind is Kind.GEMM:
        return 1, int(shape[1 - unit.weight_axis])
    return prod(shape[:-2]), int(shape[-2])


def _layer(unit: Unit) -> LayerProbe:
    last = unit.nodes[-1] if unit.clip is None else unit.nodes[-2]
    assert unit.weight is not None
    shape = tuple(map(int, unit.weight.shape))
    geometry = _window(unit, shape) if unit.kind in CONVOLUTIONS else Stack(shape[:-2])
    return LayerProbe(unit.inputs[0].name, last.outputs[0].name, geometry)


def _window(unit: Unit, shape: tuple[int, ...]) -> Window:
    attrs, kernel = unit.node.attrs, shape[2:]
    return Window(
        kernel=kernel,
        strides=tuple(attrs.get("strides") or [1] * len(kernel)),
        dilations=tuple(attrs.get("dilations") or [1] * len(kernel)),
        pads=tuple(attrs.get("pads") or [0] * (2 * len(kernel))),
        auto_pad=attrs.get("auto_pad", "NOTSET"),
        groups=int(attrs.get("group", 1)),
    )
