# SPDX-License-Identifier: Apache-2.0
"""Where torch computes."""

import torch

from qhyvit_onnx.config import CompileConfig
from qhyvit_onnx.errors import ConfigError


def device_of(config: CompileConfig) -> str:
    """Return the torch device that ``config.device`` means: auto is a GPU where torch sees one.

    Raises:
        ConfigError: cuda is asked for and torch sees none.

    """
    found = torch.cuda.is_available()
    if config.device == "cuda" and not found:
        raise ConfigError("device is 'cuda', and torch sees no GPU", hint="use --device cpu")
    if config.device == "auto":
        return "cuda" if found else "cpu"
    return config.device
