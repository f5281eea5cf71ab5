# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source with ``ast``: lazy and typing-only imports count too.

    terminal -> compilation -> passes -> services -> kernels -> foundation

An import goes to the same layer or to one on the right. A pass never imports another pass. Each
library of ``HOME`` is imported at its home only. A module not named here is a service.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "qhyvit_onnx": "qhyvit_onnx",
    "passes": "qhyvit_onnx.passes",
    "kernels": "qhyvit_onnx.kernels",
}

LAYERS = ("foundation", "kernels", "services", "passes", "compilation", "terminal")
FOUNDATION = {"config", "errors", "grid", "methods", "precision", "recipes", "simulated"}
COMPILATION = {  # "": the package's own names
    "", "compiler", "inspection", "pipeline", "placements", "report", "simulator", "sweep",
}  # fmt: skip
TERMINAL = {
    "__main__", "bars", "cli", "commands", "drawing", "overview", "progress", "summary", "tables",
}  # fmt: skip

HOME = {
    "torch": ("qhyvit_onnx.kernels",),
    "onnxruntime": ("qhyvit_onnx.runtime",),
    "onnx_graphsurgeon": ("qhyvit_onnx.graph",),
    "click": tuple(f"qhyvit_onnx.{name}" for name in sorted(TERMINAL)),
    "rich": tuple(f"qhyvit_onnx.{name}" for name in sorted(TERMINAL)),
    "jinja2": ("qhyvit_onnx.drawing.page",),
    "timm": (),
    "passes": (),  # a second import path makes a second module
    "kernels": (),
}
GRAPHS = {"onnx", "onnx_graphsurgeon", "onnx_ir", "onnxscript"}
NUMPY_ONLY = {"qhyvit_onnx.kernels.observers"}


def source_modules() -> dict[str, Path]:
    """Return every module of the package by dotted name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


MODULES = source_modules()


def layer(module: str) -> int:
    """Return the index in LAYERS of a module of the package."""
    first = [*module.split("."), ""][1]
    for names, title in (
        ({"passes"}, "passes"),
        ({"kernels"}, "kernels"),
        (FOUNDATION, "foundation"),
        (COMPILATION, "compilation"),
        (TERMINAL, "terminal"),
    ):
        if first in names:
            return LAYERS.index(title)
    return LAYERS.index("services")


def lies_in(module: str, home: str) -> bool:
    return module == home or module.startswith(home + ".")


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of everything ``source`` imports, at any depth.

    ``from package import name`` is the module ``package.name`` if there is one, else ``package``.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom(level=0, module=str(package)):
                full = {f"{package}.{alias.name}" for alias in node.names}
                for name in sorted(full - {"qhyvit_onnx.__version__"}):
                    yield node.lineno, name if name in MODULES else package
            case ast.ImportFrom():
                yield node.lineno, "." * node.level + (node.module or "")
            case ast.Call(args=[ast.Constant(value=str(name)), *_]) if imports_by_name(node.func):
                yield node.lineno, name


def imports_by_name(function: ast.expr) -> bool:
    return ast.unparse(function).split(".")[-1] in {"import_module", "__import__"}


def library_fault(module: str, library: str) -> str:
    """Return why ``module`` may not import a library from outside, or an empty string."""
    home = HOME.get(library)
    if home is not None and not any(lies_in(module, place) for place in home):
        return f"{library} is for {', '.join(home) or 'no module'}"
    if lies_in(module, "qhyvit_onnx.kernels") and library in GRAPHS:
        return "kernels know arrays, not graphs"
    free = sys.stdlib_module_names | {"numpy"}
    return "numpy only" if module in NUMPY_ONLY and library not in free else ""


def fault(module: str, target: str) -> str:
    """Return why ``module`` may not import ``target``, or an empty string."""
    if target.startswith("."):
        return "relative import"
    if not lies_in(target, "qhyvit_onnx"):
        return library_fault(module, target.split(".", maxsplit=1)[0])
    if layer(target) > layer(module):
        return f"{LAYERS[layer(module)]} may not import {LAYERS[layer(target)]}"
    if module in NUMPY_ONLY and layer(target) > LAYERS.index("foundation"):
        return "numpy only"
    if LAYERS[layer(module)] == LAYERS[layer(target)] == "passes":
        name = target.removeprefix("qhyvit_onnx.passes").removeprefix(".")
        return "passes do not import passes" if name and name[0] != "_" else ""
    return ""


def violations(module: str, source: str) -> list[str]:
    """Return one line for each import of ``source``, the text of ``module``, that breaks a rule."""
    return [
        f"{module}:{line} imports {target}: {why}"
        for line, target in imports(source)
        if (why := fault(module, target))
    ]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_keeps_to_its_layer(module):
    assert violations(module, MODULES[module].read_text(encoding="utf-8")) == []


def test_every_named_module_exists():
    named = {f"qhyvit_onnx.{name}" for name in FOUNDATION | COMPILATION | TERMINAL if name}
    homes = {home for homes in HOME.values() for home in homes}
    assert (named | homes | NUMPY_ONLY) - set(MODULES) == set()


PLANTED = [
    ("config", "from qhyvit_onnx.state import State", "foundation may not import services"),
    ("grid", "from qhyvit_onnx.kernels import observers", "foundation may not import kernels"),
    ("kernels.scales", "from qhyvit_onnx.state import State", "kernels may not import services"),
    ("kernels.scales", "from qhyvit_onnx.graph import value", "kernels may not import services"),
    ("kernels.scales", "import qhyvit_onnx.passes.place", "kernels may not import passes"),
    ("kernels.scales", "import onnx", "kernels know arrays, not graphs"),
    ("kernels.scales", "from onnx import helper", "kernels know arrays, not graphs"),
    ("kernels.observers", "import torch", "numpy only"),
    ("kernels.observers", "from scipy import stats", "numpy only"),
    ("kernels.observers", "from qhyvit_onnx.kernels import scales", "numpy only"),
    ("units", "from qhyvit_onnx.passes._base import Pass", "services may not import passes"),
    ("state", "import qhyvit_onnx.pipeline", "services may not import compilation"),
    ("state", "from qhyvit_onnx.tables import show", "services may not import terminal"),
    ("passes.place", "from qhyvit_onnx.passes.weigh import Weigh", "passes do not import passes"),
    ("passes.place", "from qhyvit_onnx.passes import weigh", "passes do not import passes"),
    ("passes._board", "import qhyvit_onnx.passes.weigh", "passes do not import passes"),
    ("passes.place", "from qhyvit_onnx import pipeline", "passes may not import compilation"),
    ("passes.place", "from qhyvit_onnx.compiler import x", "passes may not import compilation"),
    ("passes.place", "from qhyvit_onnx import compile_model", "passes may not import compilation"),
    ("passes.place", "from qhyvit_onnx import cli", "passes may not import terminal"),
    ("passes.place", "import qhyvit_onnx.commands.eval", "passes may not import terminal"),
    ("passes.place", "from .weigh import Weigh", "relative import"),
    ("passes.place", "from . import weigh", "relative import"),
    ("pipeline", "from qhyvit_onnx import cli", "compilation may not import terminal"),
    ("passes.place", "import torch", "torch is for"),
    ("compiler", "import torch.nn as nn", "torch is for"),
    ("audit", "import onnxruntime as ort", "onnxruntime is for"),
    ("kernels.scales", "import onnxruntime", "onnxruntime is for"),
    ("passes.place", "import onnx_graphsurgeon as gs", "onnx_graphsurgeon is for"),
    ("report", "from rich.table import Table", "rich is for"),
    ("pipeline", "import click", "click is for"),
    ("images", "import timm", "timm is for no module"),
    ("overview", "from jinja2 import Template", "jinja2 is for"),
    ("pipeline", "from passes.place import Place", "passes is for no module"),
    ("pipeline", "import kernels", "kernels is for no module"),
]
DISGUISES = {
    "plain": "{}",
    "in a function": "def f():\n    if x:\n        {}",
    "for types": "if TYPE_CHECKING:\n    {}",
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
@pytest.mark.parametrize(("module", "line", "why"), PLANTED)
def test_a_planted_import_is_caught(module, line, why, disguise):
    found = violations(f"qhyvit_onnx.{module}", disguise.format(line))
    assert len(found) == 1
    assert why in found[0]


@pytest.mark.parametrize(
    "call",
    ['import_module("torch")', 'importlib.import_module("torch.nn")', '__import__("torch")'],
)
def test_an_import_by_name_is_caught(call):
    assert len(violations("qhyvit_onnx.compiler", f"x = {call}")) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("kernels.observers", "import numpy as np"),
        ("kernels.observers", "from collections.abc import Iterator"),
        ("kernels.observers", "from qhyvit_onnx.grid import Grid"),
        ("kernels.scales", "import torch"),
        ("kernels.scales", "from qhyvit_onnx.grid import Grid"),
        ("kernels.scales", "from qhyvit_onnx.kernels.observers import Observer"),
        ("facts", "from qhyvit_onnx.kernels.observers import TensorStats"),
        ("passes._sensitivity", "import onnx"),
        ("passes.place", "from qhyvit_onnx.passes._base import Pass"),
        ("passes.place", "from qhyvit_onnx.passes import _board"),
        ("passes.place", "from qhyvit_onnx import __version__"),
        ("runtime", "import onnxruntime as ort"),
        ("commands.eval", "from rich.console import Console"),
        ("cli", "from qhyvit_onnx.errors import CompileError"),
        ("pipeline", "from qhyvit_onnx.passes.place import Place"),
    ],
)
def test_what_is_allowed_passes(module, line):
    assert violations(f"qhyvit_onnx.{module}", line) == []
