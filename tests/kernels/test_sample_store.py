# SPDX-License-Identifier: Apache-2.0
"""Samples in memory and in files: the same numbers, and nothing left behind."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="samples are torch tensors, an extra")

from qhyvit_onnx.kernels.sample_store import Memory, SampleStore  # noqa: E402

SAMPLES = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32))
SIZE = 2 * 3 * 4


def filled(memory):
    store = SampleStore(memory)
    for sample in SAMPLES:
        store.append(sample)
    return store


@pytest.mark.parametrize("fitting", [0, 1, 3, 7])
def test_samples_come_back_in_any_order(tmp_path, fitting):
    store = filled(Memory(fitting * SIZE, tmp_path))
    order = [4, 0, 6, 4]
    want = torch.cat([SAMPLES[i] for i in order])
    assert torch.equal(store.pick(order), want)
    assert bool(list(tmp_path.iterdir())) is (fitting < 7)


def test_closing_frees_memory_and_removes_the_file(tmp_path):
    memory = Memory(8 * SIZE, tmp_path)
    first = filled(memory)
    second = filled(memory)
    assert len(list(tmp_path.iterdir())) == 1  # the second did not fit
    first.close()
    second.close()
    assert not list(tmp_path.iterdir())
    filled(memory)
    assert not list(tmp_path.iterdir())  # there is room again


def test_a_sample_is_a_copy_without_gradient(tmp_path):
    memory = Memory(8 * SIZE, tmp_path)
    store = SampleStore(memory)
    tensor = torch.ones(2, 3, requires_grad=True) * 2
    store.append(tensor)
    assert not store.pick([0]).requires_grad


def test_scalars_by_sample(tmp_path):
    store = SampleStore(Memory(0, tmp_path))
    for number in (1.0, 2.0):
        store.append(torch.full((1,), number))
    assert store.pick([1, 0]).tolist() == [2.0, 1.0]
