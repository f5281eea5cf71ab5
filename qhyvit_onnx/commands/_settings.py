# SPDX-License-Identifier: Apache-2.0
"""The options of ``compile`` that say what the model shall be: together they are its config."""

from collections.abc import Callable, Sequence

import click

from qhyvit_onnx.commands import _options
from qhyvit_onnx.commands._options import DEFAULTS, Command
from qhyvit_onnx.config import DEVICES, CompileConfig, Effort, Extent, Folding, Guard, Io, Scope
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.recipes import Form, listed

OPTIONS: Sequence[Callable[[Command], Command]] = (
    click.option(
        "--calib-samples",
        type=int,
        default=DEFAULTS.calib_samples,
        show_default=True,
        help="Samples used at most.",
    ),
    click.option(
        "--precision",
        default=DEFAULTS.precision,
        show_default=True,
        metavar="wXaY",
        help="Bits of weights and activations: X and Y of 4, 6, 8.",
    ),
    click.option(
        "--edge-precision",
        default=DEFAULTS.edge_precision,
        show_default=True,
        metavar="wXaY",
        help="The same for the first and the last layer, where it is finer.",
    ),
    click.option(
        "--bits",
        multiple=True,
        metavar="GLOB=wXaY",
        help="Precision of layers by node name; may be repeated, the last match wins.",
    ),
    click.option(
        "--recipe",
        default=DEFAULTS.recipe,
        show_default=True,
        metavar="NAME",
        help=f"How scales are searched: {listed(Form.DEPLOYED, Form.FOUND)}.",
    ),
    click.option(
        "--effort",
        type=click.Choice([effort.value for effort in Effort]),
        help="fast: closed forms, no torch; default: errors weighted by what the output suffers, "
        "rounding learned, briefly at 8 bits; max: learned for longer, on more samples. "
        "Without it: default where torch is installed, else fast.",
    ),
    click.option(
        "--device",
        type=click.Choice(DEVICES),
        default=DEFAULTS.device,
        show_default=True,
        help="Where rounding is learned; auto takes a GPU when torch sees one.",
    ),
    click.option(
        "--placement",
        type=click.Choice([extent.value for extent in Extent]),
        default=DEFAULTS.placement.value,
        show_default=True,
        help="What runs on integer kernels: fast (what is faster there on the target), full "
        "(everything that has one, Softmax too).",
    ),
    _options.target,
    click.option(
        "--fold",
        type=click.Choice([scope.value for scope in Scope]),  # given an enum, click wants names
        default=DEFAULTS.folding.scope.value,
        show_default=True,
        help="What is folded into neighbouring layers: off (BatchNormalization and constant scales "
        "only), norms (LayerNorm and GroupNorm too), all (scale and shift of single channels too).",
    ),
    click.option(
        "--io",
        type=click.Choice([io.value for io in Io]),
        default=DEFAULTS.io.value,
        show_default=True,
        help="What goes in and out: float, or uint8 where a grid is known; the report and the "
        "model's metadata tell scale and zero point.",
    ),
    click.option(
        "--embed-preprocess",
        is_flag=True,
        help="Let the model take pixels, 0 to 255: scale, mean and std of --preprocess go into it.",
    ),
    click.option(
        "--approximate-gelu",
        is_flag=True,
        help="Let GELUs run int8, as x * sigmoid, also where that errs by more than rounding does; "
        "the report says by how much.",
    ),
    click.option(
        "--exclude",
        "--nodes-to-exclude",
        "exclude",
        multiple=True,
        metavar="GLOB",
        help="Nodes that stay float, by name; may be repeated.",
    ),
    click.option(
        "--force-int8",
        "force_int8",
        multiple=True,
        metavar="GLOB",
        help="Nodes that run int8 if they can, whatever it costs, by name; may be repeated.",
    ),
    click.option(
        "--accuracy-weight",
        type=float,
        default=DEFAULTS.guard.weight,
        show_default=True,
        metavar="W",
        help="Count output error as cost when placing: 100 leaves float what makes 1 % error but "
        "saves less than a whole float run.",
    ),
    _options.input_shape,
    _options.seed,
)


def settings(command: Command) -> Command:
    """Let ``command`` take all of OPTIONS, as one argument ``config``."""
    return _options.gathered(command, OPTIONS, _config, "config")


def _config(
    *, calib_samples: int, precision: str, edge_precision: str, bits: tuple[str, ...], recipe: str,
    effort: str | None, device: str, placement: str, target: str, fold: str, io: str,
    embed_preprocess: bool, approximate_gelu: bool, exclude: tuple[str, ...],
    force_int8: tuple[str, ...], accuracy_weight: float, input_shapes: tuple[str, ...], seed: int,
) -> CompileConfig:  # fmt: skip
    """Return the config of the OPTIONS as click gives them."""
    return CompileConfig(
        precision=precision,
        edge_precision=edge_precision,
        bits=dict(map(_override, bits)),
        recipe=recipe,
        effort=None if effort is None else Effort(effort),
        device=device,
        placement=Extent(placement),
        target=target,
        folding=Folding(scope=Scope(fold)),
        io=Io(io),
        embed_preprocess=embed_preprocess,
        approximate_gelu=approximate_gelu,
        exclude=exclude,
        force_int8=force_int8,
        guard=Guard(weight=accuracy_weight),
        input_shapes=_options.shapes(input_shapes),
        calib_samples=calib_samples,
        seed=seed,
    )


def _override(text: str) -> tuple[str, str]:
    """Return glob and precision of one ``--bits``."""
    glob, _, precision = text.rpartition("=")
    if not glob:
        raise ConfigError(f"--bits {text!r} is not GLOB=wXaY")
    return glob, precision
