# SPDX-License-Identifier: Apache-2.0
"""Integer kernels as onnxruntime runs them, in numpy: what emitted models are held to.

Every kernel takes the codes a node reads and returns the codes it must write, bit for bit. Where
onnxruntime rounds in float32, so does the kernel; sums of products are exact.
"""
