# SPDX-License-Identifier: Apache-2.0
"""Int8 compiler for hybrid convolution + transformer ONNX models, for stock onnxruntime.

``compile(model, data)`` does what ``qhv-onnx compile`` does and returns the model with its report.
Importing this package imports nothing else: a name is loaded when it is first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qhyvit_onnx.compiler import Compiled
    from qhyvit_onnx.compiler import compile_model as compile  # noqa: A004  the public name
    from qhyvit_onnx.config import CompileConfig
    from qhyvit_onnx.errors import (
        AuditError,
        CompileError,
        ConfigError,
        DataError,
        ModelError,
        OutputError,
        PassError,
        ResourceError,
        TargetMissedError,
    )
    from qhyvit_onnx.report import Report
    from qhyvit_onnx.simulator import Simulation, simulate
    from qhyvit_onnx.sweep import Bound

__version__ = "0.1.0"

__all__ = [
    "AuditError",
    "Bound",
    "CompileConfig",
    "CompileError",
    "Compiled",
    "ConfigError",
    "DataError",
    "ModelError",
    "OutputError",
    "PassError",
    "Report",
    "ResourceError",
    "Simulation",
    "TargetMissedError",
    "__version__",
    "compile",
    "simulate",
]

_HOMES = {
    "Bound": "sweep",
    "CompileConfig": "config",
    "Compiled": "compiler",
    "Report": "report",
    "Simulation": "simulator",
    "compile": "compiler",
    "simulate": "simulator",
}
"""Modules of the public names; every other one is an error."""


def __getattr__(name: str) -> object:
    """Load a public name on its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    found: object = getattr(home, "compile_model" if name == "compile" else name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})


# A wheel nests passes/ and kernels/ in this package; a source checkout keeps them beside it.
_package_dir = Path(__file__).parent
if not (_package_dir / "passes").is_dir():
    __path__.append(str(_package_dir.parent))
