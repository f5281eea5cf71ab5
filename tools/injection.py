# SPDX-License-Identifier: Apache-2.0
"""Put a crafted spread and offset per channel into the bridges of a float model, exactly.

usage: python tools/injection.py MODEL OUT --calib DATA [--preprocess RECIPE] [--signs positive]

The output stays what it was, up to float rounding: what is put into a tensor by the constants that
write its channels is taken out again by the layers that read them. What int8 makes of such a model
shows whether range folding works. Sites are sought among what lies in a bridge or reads from one:
a norm before qkv, the norm before the features go back to a map, values of attention before their
projection (scale only), two layers in a row.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import onnx
from _bench import Rows, table
from _sites import Feed, Site, site_at, with_outputs
from _slots import Array, Slot, offset_slot, sources

from qhyvit_onnx.config import CompileConfig, Folding, Scope
from qhyvit_onnx.data import Feeds, open_feeds
from qhyvit_onnx.errors import ModelError, PassError
from qhyvit_onnx.facts import BRIDGES
from qhyvit_onnx.graph import Graph, tidy
from qhyvit_onnx.model_io import input_specs, load_model
from qhyvit_onnx.pattern import Miss
from qhyvit_onnx.pipeline import Watcher, default_pipeline, run
from qhyvit_onnx.runtime import Session
from qhyvit_onnx.state import State
from qhyvit_onnx.targets import TARGETS

CLOSE = 1e-4
"""How far an output may move, as a fraction of its range: rounding of float32 makes about 1e-6."""


class Signs(StrEnum):
    """To which side the offsets go."""

    RANDOM = "random"
    POSITIVE = "positive"
    """The tensor becomes one-sided: its range no longer holds zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """How much is put in."""

    spread: float = 100.0
    """Largest factor over smallest; factors are even on a logarithmic axis about 1."""
    sigmas: float = 20.0
    """Offset of a channel, in standard deviations of that channel."""
    signs: Signs = Signs.RANDOM
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Injected:
    """The changed model, and where it was changed."""

    model: onnx.ModelProto
    sites: tuple[Site, ...]
    misses: tuple[Miss, ...]
    """Tensors of bridges that take no scale, and why."""


def inject(model: onnx.ModelProto, feeds: Sequence[Feed], dose: Dose = Dose()) -> Injected:
    """Return ``model``, normalised, with ``dose`` at every site of its bridges.

    Deviations of channels are measured on ``feeds``.

    Error:
        ModelError when no bridge has a site; PassError when an output moves by more than
        1e-4 of its range on any of ``feeds``.
    """
    state = _at_bridges(model)
    graph, plain = state.graph, state.model()
    near = {name for bridge in state.get(BRIDGES) for name in bridge.nodes}
    found = [site_at(graph, plain, source, feeds[0]) for source in sources(graph)]
    sites = tuple(site for site in found if isinstance(site, Site) and _touches(site, near))
    if not sites:
        raise ModelError("no tensor of a bridge is written and read by constants per channel")
    deviations = _deviations(plain, sites, feeds)
    rng = np.random.default_rng(dose.seed)
    for site in sites:
        _apply(graph, site, *_draw(site, deviations[site.source.output.name], dose, rng))
    tidy(graph)
    changed = state.model()
    _compare(model, changed, feeds)
    misses = (item for item in found if isinstance(item, Miss) and item.node in near)
    return Injected(changed, sites, tuple(misses))


def _at_bridges(model: onnx.ModelProto) -> State:
    """Return the compilation of ``model`` up to its bridges, with nothing but BN folded."""
    config = CompileConfig(folding=Folding(scope=Scope.OFF))
    state = State(model, config, Feeds.of([]))
    passes = default_pipeline(config, TARGETS[0])
    last = next(index for index, item in enumerate(passes) if BRIDGES in item.gives)
    run(passes[: last + 1], state, Watcher())
    return state


def _touches(site: Site, near: Iterable[str]) -> bool:
    names = {site.source.node.name, *(sink.node.name for sink in site.sinks)}
    return not names.isdisjoint(near)


def _deviations(
    model: onnx.ModelProto, sites: Sequence[Site], feeds: Sequence[Feed]
) -> dict[str, Array]:
    """Return the standard deviation of every channel, (C,), of what the sites' sources write."""
    sums: dict[str, Array] = {}
    wanted = [site.source.output.name for site in sites]
    session = Session(with_outputs(model, set(wanted)))
    for feed in feeds:
        values = session.run(feed, wanted)
        for site in sites:
            source = site.source
            x = np.moveaxis(values[source.output.name], -1 - source.behind, 0).astype(np.float64)
            x = x.reshape(len(x), -1)  # (C, positions)
            moments = np.stack([np.full(len(x), x.shape[1]), x.sum(1), np.square(x).sum(1)])
            sums[source.output.name] = sums.get(source.output.name, 0.0) + moments
    found = {}
    for name, (count, total, squares) in sums.items():
        found[name] = np.sqrt(np.maximum(squares / count - np.square(total / count), 0.0))
    return found


def _draw(
    site: Site, deviation: Array, dose: Dose, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Return factor and offset of every channel, (C,); 1 and 0 where the site takes none."""
    many = int(site.scaled.sum())
    factor, half = np.ones(len(deviation)), np.sqrt(dose.spread)
    factor[site.scaled] = rng.permutation(np.geomspace(1 / half, half, many))
    sign = rng.choice([-1.0, 1.0], len(deviation))
    offset = dose.sigmas * deviation * factor
    if dose.signs is Signs.RANDOM:
        offset *= sign
    return factor, np.where(site.shifted, offset, 0.0)


def _apply(graph: Graph, site: Site, factor: Array, offset: Array) -> None:
    """Let the source write ``factor * x + offset``, and every sink read x out of it."""
    gain, start = site.source.gain, offset_slot(graph, site.source.node)
    gain.write(graph, gain.array * gain.along(factor))
    start.write(graph, start.array * start.along(factor) + start.along(offset))
    for sink in site.sinks:
        _take_out(graph, sink.weight, factor[sink.columns], offset[sink.columns])


def _take_out(graph: Graph, weight: Slot, factor: Array, offset: Array) -> None:
    """Divide the weight's input channels by ``factor``; take what ``offset`` adds off the bias."""
    if (factor == 1.0).all() and (offset == 0.0).all():
        return
    array = weight.array / weight.along(factor)
    weight.write(graph, array)
    if offset.any():
        rows = np.moveaxis(array * weight.along(offset), weight.axis, 1)  # (O, I, *kernel)
        bias = offset_slot(graph, weight.node)
        bias.write(graph, bias.array - bias.along(rows.reshape(len(rows), -1).sum(axis=1)))


def _compare(before: onnx.ModelProto, after: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
    """Raise PassError when an output moved by more than rounding does."""
    old, new = Session(before), Session(after)
    for feed in feeds:
        want, got = old.run(feed), new.run(feed)
        for name in want:
            x, y = (np.asarray(outputs[name], np.float64) for outputs in (want, got))
            moved = float(np.abs(x - y).max()) / max(float(np.ptp(x)), 1e-30)
            if not moved <= CLOSE:
                raise PassError(f"output {name!r} moved by {moved:.1e} of its range")


def main() -> None:
    """Inject, write the model, print the sites."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--calib", required=True, help="images or arrays, as compile takes them")
    parser.add_argument("--preprocess", help="how images become inputs")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--spread", type=float, default=Dose().spread)
    parser.add_argument("--sigmas", type=float, default=Dose().sigmas)
    parser.add_argument("--signs", type=Signs, choices=list(Signs), default=Dose().signs)
    parser.add_argument("--seed", type=int, default=Dose().seed)
    args = parser.parse_args()
    model = load_model(args.model)
    feeds = open_feeds(
        args.calib, input_specs(model), samples=args.samples, preprocess=args.preprocess
    )
    dose = Dose(spread=args.spread, sigmas=args.sigmas, signs=args.signs, seed=args.seed)
    injected = inject(model, list(feeds), dose)
    onnx.save(injected.model, args.out)
    print(table(described(injected)))
    for miss in injected.misses:
        print(f"left alone: {miss.node}: {miss.reason}")


def described(injected: Injected) -> Rows:
    """Return one row a site."""
    return [
        {
            "written by": site.source.node.name,
            "op": site.source.node.op,
            "channels": len(site.scaled),
            "scaled": int(site.scaled.sum()),
            "shifted": int(site.shifted.sum()),
            "read by": ", ".join(sink.node.name for sink in site.sinks),
        }
        for site in injected.sites
    ]


if __name__ == "__main__":
    main()
