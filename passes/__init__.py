# SPDX-License-Identifier: Apache-2.0
"""The passes: one file each; the pipeline in ``qhyvit_onnx.pipeline`` puts them in order."""
