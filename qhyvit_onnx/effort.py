# SPDX-License-Identifier: Apache-2.0
"""How much effort a compilation makes, which depends on whether torch is installed."""

from importlib.util import find_spec

from qhyvit_onnx.config import CompileConfig, Effort
from qhyvit_onnx.errors import ConfigError

GET_TORCH = "pip install 'qhyvit-onnx[torch]'"


def torch_is_installed() -> bool:
    """Tell whether torch could be imported, without importing it."""
    return find_spec("torch") is not None


def effort_of(config: CompileConfig) -> Effort:
    """Return the effort that is made: without a wish DEFAULT where torch is installed, else FAST.

    Error:
        ConfigError when more than FAST is asked for and torch is not installed.
    """
    if config.effort is None:
        return Effort.DEFAULT if torch_is_installed() else Effort.FAST
    if config.effort is not Effort.FAST and not torch_is_installed():
        raise ConfigError(f"effort {config.effort.value} needs torch", hint=GET_TORCH)
    return config.effort
