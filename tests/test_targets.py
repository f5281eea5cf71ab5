# SPDX-License-Identifier: Apache-2.0
"""Targets: found by name, or from the features of the CPU; every table is complete."""

import pytest

from qhyvit_onnx.config import Extent
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.targets import TARGETS, Rule, find_target
from qhyvit_onnx.units import Kind

NAMES = [target.name for target in TARGETS]


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"sse2", "avx2", "avx512_vnni"}, "x64-vnni"),
        ({"sse2", "avx2", "avx_vnni"}, "x64-vnni"),
        ({"avx512_vnni"}, "x64-vnni"),
        ({"sse2", "avx2", "avx512f"}, "x64-avx2"),
        ({"fp", "asimd", "asimddp", "i8mm"}, "arm64"),
        ({"fp", "asimd"}, "arm64"),
        ({"fp", "asimddp"}, "arm64"),
    ],
)
def test_auto_goes_by_the_features(features, name):
    assert find_target("auto", frozenset(features)).name == name


def test_auto_without_features_is_a_target():
    # no /proc/cpuinfo: macOS, where the CPU is most likely an ARM
    assert find_target("auto", frozenset()).name in NAMES


def test_an_old_x86_gets_weights_that_do_not_saturate():
    # SSE4.1 multiplies with pmaddubsw as AVX2 does with vpmaddubsw
    assert find_target("auto", frozenset({"sse2", "ssse3", "sse4_1", "avx"})).pair_limit


@pytest.mark.parametrize("name", NAMES)
def test_a_named_target_needs_no_features(name):
    assert find_target(name, frozenset()).name == name


@pytest.mark.parametrize("name", ["", "ARM64", "x86", "cuda"])
def test_an_unknown_target_lists_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"is not known; use one of auto, ") as caught:
        find_target(name, frozenset())
    assert all(known in str(caught.value) for known in NAMES)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_every_kind_has_a_row(target):
    assert set(target.rows) == set(Kind)
    assert all(row.reason for row in target.rows.values())
    assert all(row.min_reuse >= 0 for row in target.rows.values())


def test_names_are_unique_and_told_apart():
    assert len(set(NAMES)) == len(NAMES)
    assert all(target.summary for target in TARGETS)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_what_onnxruntime_fuses_unasked_is_never_forbidden(target):
    # a product of two dequantized activations is fused whenever it is found
    assert target.rows[Kind.PRODUCT].rule is not Rule.NEVER
    assert target.rows[Kind.STEM].rule is Rule.NEVER


def test_only_cpus_without_vnni_limit_pairs():
    assert {t.name: t.pair_limit for t in TARGETS if t.pair_limit} == {"x64-avx2": 128}


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_full_extent_asks_for_speed_nowhere(target):
    full = target.reaching(Extent.FULL)
    assert set(full.rows) == set(Kind)
    assert {(row.rule, row.min_reuse) for row in full.rows.values()} == {(Rule.ALWAYS, 0.0)}
    # the CPU stays what it is
    assert (full.name, full.pair_limit) == (target.name, target.pair_limit)
    assert target.reaching(Extent.FAST) is target


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_what_is_faster_in_float_stays_float(target):
    assert target.rows[Kind.SOFTMAX].rule is Rule.NEVER
    assert target.rows[Kind.SIGMOID].rule is Rule.NEVER
