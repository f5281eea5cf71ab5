# SPDX-License-Identifier: Apache-2.0
"""The cost table of the machine this runs on."""

import platform
from collections.abc import Callable
from datetime import UTC, datetime

from qhyvit_onnx import __version__
from qhyvit_onnx.costs.clock import measure
from qhyvit_onnx.costs.fit import fit
from qhyvit_onnx.costs.specimens import specimens
from qhyvit_onnx.costs.table import Target, layout_key
from qhyvit_onnx.runtime import cpu_features, version
from qhyvit_onnx.targets import find_target

ARM = frozenset({"aarch64", "arm64"})


def profile(name: str, summary: str, tick: Callable[[int, int], None]) -> Target:
    """Time every specimen, one thread; return the table, called ``name``.

    What saturates is taken from the shipped target that has this CPU's features.
    """
    chosen = specimens()
    # onnxruntime has a blocked layout for float convolutions on x86 alone
    free = [layout_key("blocked")] if platform.machine().lower() in ARM else []
    rows = fit(chosen, measure(chosen, tick), free)
    how = f"timed, qhv-onnx profile {__version__}, {datetime.now(UTC).date()}"
    limit = find_target("auto", cpu_features()).pair_limit
    return Target(name, summary, "ns", f"onnxruntime {version()}, {how}", rows, limit)
