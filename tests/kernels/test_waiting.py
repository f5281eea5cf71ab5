# SPDX-License-Identifier: Apache-2.0
"""How torch's threads wait, which is settled before torch is loaded."""

import os
import subprocess
import sys

import pytest

SCRIPT = "import os, qhyvit_onnx.kernels; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "want"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_threads_soon_sleep_while_they_wait_unless_the_user_says_otherwise(given, want):
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: text for name, text in os.environ.items() if name not in ours}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment | given,
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == want


def test_the_package_of_kernels_leaves_torch_to_those_who_need_it():
    script = "import sys, qhyvit_onnx.kernels; print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "False"
