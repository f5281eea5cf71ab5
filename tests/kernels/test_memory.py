# SPDX-License-Identifier: Apache-2.0
"""Large blocks that are freed and asked for again must not be fetched from the system again."""

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource", reason="page faults are counted on Unix")

COUNT = """
import resource
import sys

import numpy as np

from qhyvit_onnx.kernels.memory import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("impossible")
np.ones(1 << 24, np.float32)  # 64 MiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    np.ones(1 << 24, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode):
    """Return the page faults of five blocks of 64 MiB, in a process of their own."""
    command = [sys.executable, "-c", COUNT, mode]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "impossible" in done.stderr:
        pytest.skip("only glibc can be told")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_large_blocks_are_reused():
    assert faults("keep") < 100
    assert faults("as ever") > 100
