# SPDX-License-Identifier: Apache-2.0
"""``python -m qhyvit_onnx`` is ``qhv-onnx``."""

from qhyvit_onnx.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
