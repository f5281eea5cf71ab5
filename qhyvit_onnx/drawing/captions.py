# SPDX-License-Identifier: Apache-2.0
"""Texts of the drawing: short enough for their place, safe for XML."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import ascii_lowercase

from qhyvit_onnx.inspection import BridgeView, Port, RegionView
from qhyvit_onnx.inspection.records import Dims
from qhyvit_onnx.work import shown_work

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, even escaped."""

LONG = 3
"""The name of a free dim longer than this is drawn as one letter, and explained once."""

TIMES = "\N{MULTIPLICATION SIGN}"

PRIVATE = 0xE000
"""Code points that no name has."""


def clean(text: str) -> str:
    """Return ``text`` with what XML cannot hold replaced."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def shortened(text: str, length: int) -> str:
    """Return ``text`` in at most ``length`` characters: names differ at both ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Writes sizes and shapes with multiplication signs; long names of free dims become letters."""

    letters: Mapping[str, str]
    """Every free dim of the inputs to what is written for it; longest names first."""

    @classmethod
    def of(cls, ports: Iterable[Port]) -> "Sizes":
        """Return the letters for the free dims of ``ports``, in their order."""
        named = (dim for port in ports for dim in port.shape if isinstance(dim, str))
        names = list(dict.fromkeys(name for name in named if name != "?"))
        free = (letter for letter in ascii_lowercase if letter not in names)
        letters = {name: next(free, name) if len(name) > LONG else name for name in names}
        return cls({name: letters[name] for name in sorted(letters, key=len, reverse=True)})

    def size(self, text: str) -> str:
        """Return the size of a map as it is drawn."""
        for place, name in enumerate(self.letters):
            text = text.replace(name, chr(PRIVATE + place))  # a name may hold an x of its own
        text = text.replace("x", TIMES)
        for place, letter in enumerate(self.letters.values()):
            text = text.replace(chr(PRIVATE + place), letter)
        return text

    def shape(self, dims: Dims | None) -> str:
        """Return a shape; a dim that depends on free ones in a complicated way is ``?``."""
        if dims is None:
            return "?"
        named = (dim if isinstance(dim, int) else self.letters.get(dim, "?") for dim in dims)
        return TIMES.join(map(str, named))

    @property
    def legend(self) -> str:
        """What the letters mean, in a line; empty when there are none."""
        pairs = sorted((letter, name) for name, letter in self.letters.items() if letter != name)
        return ", ".join(f"{letter} = {name}" for letter, name in pairs)


def ends(region: RegionView) -> str:
    """Return ``144→384``: channels that come in and go out."""
    known = (region.channels_in, region.channels_out)
    return "→".join("?" if end is None else str(end) for end in known)


def crossings(bridge: BridgeView) -> str:
    """Return ``3 → 4, 6 → 7``: the regions that a bridge joins."""
    return ", ".join(
        f"within {a + 1}" if a == b else f"{a + 1} → {b + 1}" for a, b in bridge.crosses
    )


def counted(count: int, noun: str) -> str:
    """Return ``1 layer``, ``2 layers``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def work(macs: int | None, total: int | None) -> str:
    """Return ``134 M, 7 %``: multiply-adds, and their share."""
    if not macs or not total:
        return shown_work(macs)
    share = f"{100 * macs / total:.0f}"
    return f"{shown_work(macs)}, {'<1' if share == '0' else share} %"


def work_label(macs: int | None, total: int | None) -> str:
    """Return ``work`` as it stands in a box, without a word before it."""
    if macs is None:
        return "work unknown"
    return work(macs, total) if macs else "no multiply-adds"


def region_title(region: RegionView, place: int, total: int | None, sizes: Sizes) -> str:
    """Return everything about a region, in lines."""
    return "\n".join((
        f"region {place + 1}: {region.side} at {region.size}",
        f"{sizes.shape(region.shape_in)} to {sizes.shape(region.shape_out)}",
        f"{counted(len(region.nodes), 'node')}, {counted(region.layers, 'layer')} with weights, "
        f"{counted(region.products, 'product')} of activations",
        f"multiply-adds: {work(region.macs, total)}",
        f"from {region.nodes[0]}",
        f"to {region.nodes[-1]}",
    ))  # fmt: skip


def bridge_title(bridge: BridgeView, name: str) -> str:
    """Return everything about a bridge, in lines."""
    return "\n".join((
        f"bridge {name}, {bridge.direction}",
        bridge.why,
        f"{counted(len(bridge.nodes), 'node')}, {counted(bridge.layers, 'layer')}, "
        f"multiply-adds: {shown_work(bridge.macs)}",
    ))  # fmt: skip
