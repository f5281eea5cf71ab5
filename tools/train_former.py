# SPDX-License-Identifier: Apache-2.0
"""Train a small Mobile-Former on CIFAR-10 pictures, taught by nets that know them already.

    python tools/train_former.py --cifar DIR --out former_cifar10.onnx [--minutes 40 | --epochs N]

DIR holds ``models/*_cifar10.onnx``, the teachers, and ``data/cifar10_{calib,eval}.npz``: the
calibration part is learnt from, the evaluation part only measures the finished net. A thousand
pictures are enough to begin with, for what is learnt is what the teachers say of endless mixtures
of them and of photographs (tools/mixtures.py, tools/distillation.py); ``--images`` adds more.

Written is a float model of opset 17 by the TorchScript exporter: input ``x`` N x 3 x 32 x 32,
output ``logits`` N x 10, free batch. With ``--epochs`` the same seed, torch build and threads give
the same file.
"""

import argparse
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from distillation import Clock, Recipe, Teachers, divergence, prepare, teach
from dynamic_relu import DynamicReLU
from export_zoo import WAYS, difference, export
from mixtures import SIDE, Pictures, crops, join, read, split
from mobile_former import MobileFormer
from mobile_former_sizes import Block, Config
from torch import Tensor, nn

from qhyvit_onnx.runtime import Options, Session

SEED, CLASSES = 0, 10
TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order
PHOTOGRAPHS = Path(__file__).parents[1] / "qhyvit_onnx" / "assets" / "natural"
CROPS, BATCH, SAMPLE = 8192, 256, 16

CIFAR = Config(
    stem=16, lite=Block(24, 2, 2), tokens=4, token_width=64, hidden=256,
    blocks=(Block(48, 4, 2), Block(48, 3, 1), Block(80, 4, 2)),
)  # fmt: skip


class QuickReLU(nn.Module):
    """A dynamic ReLU written as max(a x, b x) = b x + ReLU((a - b) x).

    The gradient of a maximum looks for ties; without, a step of training takes a third less time.
    """

    def __init__(self, act: DynamicReLU) -> None:
        """Share the layers of ``act``."""
        super().__init__()
        self.ask, self.bound = act.ask, act.bound

    def forward(self, x: Tensor, token: Tensor) -> Tensor:
        """Return the shape of ``x``, (N, C, H, W)."""
        steps = 2 * self.bound(self.ask(token)) - 1  # (N, 2 C)
        first, second = steps[..., None, None].chunk(2, dim=1)  # each (N, C, 1, 1)
        return torch.addcmul((x * (first + 1 - second)).relu(), x, second)


def build(config: Config = CIFAR) -> MobileFormer:
    """Return an untrained net whose first convolution keeps all of a 32-pixel picture."""
    net = MobileFormer(config, CLASSES)
    stem = net.stem[0]
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return net


def quicken(net: nn.Module) -> nn.Module:
    """Put QuickReLU in place of every dynamic ReLU; the names of the weights stay."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, DynamicReLU):
                setattr(module, name, QuickReLU(child))
    return net


def train(
    labelled: Pictures, extra: Pictures, teachers: Teachers, recipe: Recipe, clock: Clock
) -> MobileFormer:
    """Return the moving average of the weights and statistics.

    Statistics of unmixed pictures were tried instead and serve the weights less well: it is with
    those of mixtures that they learnt to work.
    """
    average = build()
    model = quicken(deepcopy(average)).train()
    teach(model, average, lambda: prepare(labelled, extra, teachers, recipe), recipe, clock)
    return average.eval()


def judge(path: Path, pictures: Pictures, teachers: Teachers) -> tuple[float, float]:
    """Return top-1 of the file in onnxruntime, and its divergence from the teachers in nats."""
    student = Session(path, Options(threads=1))
    logits = torch.cat(
        [torch.from_numpy(student.run({"x": x.numpy()})["logits"]) for x in pictures.x.split(BATCH)]
    )
    answers = torch.cat([teachers.answer(x, 1.0) for x in pictures.x.split(BATCH)])
    right = (logits.argmax(1) == pictures.y).float().mean()
    return float(right), float(divergence(logits, answers, 1.0))


def write(net: nn.Module, path: Path, pictures: Pictures) -> None:
    """Write the net; SystemExit if onnxruntime makes something else of it."""
    (way,) = (way for way in WAYS if not way.dynamo and way.free_batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on the exporter's own future
        export(net, way, SIDE, path)
    gap, relative = difference(net, path, pictures.x[:SAMPLE].numpy())
    print(f"{path}: onnxruntime is within {gap:.1e} of torch, {relative:.1e} of the largest logit")
    if not relative <= TOLERANCE:  # nor if it is nan
        raise SystemExit(f"that is over {TOLERANCE:.0e}: do not use this file")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", type=Path, required=True, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="ONNX")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=40.0, help="default: %(default)g")
    length.add_argument("--epochs", type=int, default=0, help="of 4,096 new mixtures, seen thrice")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument(
        "--images", type=Path, nargs="+", default=[], metavar="NPZ",
        help="more pictures: x uint8 (N, 32, 32, 3) RGB, y labels (N,)",
    )  # fmt: skip
    parser.add_argument(
        "--hold", type=int, default=0, metavar="N",
        help="keep N calibration pictures out, and measure on them instead: to choose settings by",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write the model and print what it knows."""
    args = parser().parse_args(argv)
    torch.manual_seed(SEED)
    torch.set_num_threads(args.threads)
    paths = sorted((args.cifar / "models").glob("*_cifar10.onnx"))
    if not paths:
        raise SystemExit(f"no models/*_cifar10.onnx in {args.cifar}")
    data, recipe, teachers = args.cifar / "data", Recipe(), Teachers(paths, args.threads)
    held, taught = split(read(data / "cifar10_calib.npz"), args.hold)
    labelled = join([taught, *map(read, args.images)])
    extra = crops(PHOTOGRAPHS, CROPS, np.random.default_rng(SEED))
    steps = args.epochs * recipe.batches * recipe.repeats
    net = train(labelled, extra, teachers, recipe, Clock(steps=steps, minutes=args.minutes))
    write(net, args.out, taught)
    measured = held if args.hold else read(data / "cifar10_eval.npz")
    top1, apart = judge(args.out, measured, teachers)
    size = f"{sum(weight.numel() for weight in net.parameters()):,} parameters"
    print(f"{size}; top-1 {top1:.2%} of {len(measured.y)}, {apart:.3f} nats from the teachers")


if __name__ == "__main__":
    main()
