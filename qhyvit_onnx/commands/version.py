# SPDX-License-Identifier: Apache-2.0
"""``qhv-onnx version``: what a bug report needs, without importing any of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

import click

from qhyvit_onnx import __version__

PACKAGES = ("onnxruntime", "onnx", "onnx-graphsurgeon", "numpy", "torch")


@click.command()
def command() -> None:
    """Show the versions of this tool and of what it runs on."""
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    rows = {"qhv-onnx": __version__, "python": python}
    rows.update({name: _installed(name) for name in PACKAGES})
    width = max(map(len, rows))
    for name, text in rows.items():
        click.echo(f"{name:<{width}}  {text}")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed" + (" (optional)" if name == "torch" else "")
