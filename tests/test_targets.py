# SPDX-License-Identifier: Apache-2.0
"""Targets: found by name, by the features of the CPU, or in a file; every table is complete."""

from dataclasses import replace

import pytest

from qhyvit_onnx.costs.table import KEYS, Cost, Size, dump_table, float_key, int8_key, load_table
from qhyvit_onnx.errors import ConfigError
from qhyvit_onnx.kinds import Kind
from qhyvit_onnx.runtime import Arithmetic
from qhyvit_onnx.targets import TARGETS, arithmetic_of, find_target

NAMES = [target.name for target in TARGETS]
every_target = pytest.mark.parametrize("target", TARGETS, ids=NAMES)


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ({"sse2", "avx2", "avx512_vnni"}, "x64-vnni"),
        ({"sse2", "avx2", "avx_vnni"}, "x64-vnni"),
        ({"avx512_vnni"}, "x64-vnni"),
        ({"sse2", "avx2", "avx512f"}, "x64-avx2"),
        ({"fp", "asimd", "asimddp", "i8mm"}, "arm64-i8mm"),
        ({"fp", "asimd"}, "arm64-base"),
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


def test_names_are_unique_and_told_apart():
    assert len(set(NAMES)) == len(NAMES)
    assert len({target.summary for target in TARGETS}) == len(NAMES)


def test_only_cpus_without_vnni_limit_pairs():
    assert {t.name: t.pair_limit for t in TARGETS if t.pair_limit} == {"x64-avx2": 128}


@every_target
def test_every_table_is_complete_and_says_where_it_is_from(target):
    assert tuple(target.rows) == KEYS
    assert target.unit in {"ns", "instructions"}
    assert "onnxruntime" in target.provenance
    assert "measure_target.py" in target.provenance
    assert all(0.0 <= row.error < 0.5 for row in target.rows.values())


@every_target
def test_layers_are_cheaper_in_int8_on_every_target(target):
    # 96 to 96 channels on 32x32: plain matrix products, where integers gain everywhere
    size = Size(96 * 96 * 1024, 2 * 96 * 1024)
    kind = Kind.POINTWISE
    assert target.cost(int8_key(kind), size) < target.cost(float_key(kind), size)
    assert target.cost(float_key(kind), size) > 0


@every_target
def test_larger_units_never_cost_less(target):
    small, large = Size(1e6, 1e4), Size(2e6, 2e4)
    assert all(target.cost(key, large) >= target.cost(key, small) >= 0 for key in KEYS)


def test_the_instructions_of_a_core_without_dot_product_gain_less():
    size, kind = Size(96 * 96 * 256, 2 * 96 * 256), Kind.POINTWISE
    gains = {
        name: find_target(name, frozenset()).cost(float_key(kind), size)
        / find_target(name, frozenset()).cost(int8_key(kind), size)
        for name in ("arm64-base", "arm64", "arm64-i8mm")
    }
    assert gains["arm64-base"] < gains["arm64"] < gains["arm64-i8mm"]


def test_a_cost_is_linear():
    cost = Cost(fixed=10.0, mac=0.5, element=2.0)
    assert cost.of(Size(4, 3, parts=2)) == 2 * 10 + 4 * 0.5 + 3 * 2


@every_target
def test_a_table_survives_its_file(target, tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(dump_table(target))
    assert find_target(str(path), frozenset()) == target


def test_free_int8_keeps_float_and_the_cpu():
    target = TARGETS[-1].with_free_int8()
    assert all(target.rows[key].of(Size(1, 1)) == 0 for key in KEYS if not key.startswith("float"))
    key, size = float_key(Kind.CONV), Size(1e6, 1e4)
    assert target.cost(key, size) == TARGETS[-1].cost(key, size) + 1
    assert target.cost(float_key(Kind.CONCAT), Size()) > 0  # else float would be as good
    assert (target.name, target.pair_limit) == (TARGETS[-1].name, TARGETS[-1].pair_limit)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("[int8.gemm]", "[int8.gem]"), r"no row \[int8.gemm\]"),
        (lambda text: text.replace("mac = ", "mac = -", 1), r"\[float.conv\] has mac = -"),
        (lambda text: text.replace("fixed = ", "fixed = nan #", 1), r"has fixed = nan"),
        (lambda text: text.replace("fixed = ", "fixed = 'x' #", 1), r"has fixed = 'x'"),
        (lambda text: text.replace("unit = ", "units = ", 1), "has no unit"),
        (lambda text: text.replace("pair_limit = 128", "pair_limit = 'a'"), "pair_limit"),
        (lambda text: text + "[[[", "is not TOML"),
        (lambda text: "float = 3\n" + text[: text.index("[float.conv]")], "no row"),
    ],
)
def test_a_broken_table_names_the_file_and_what_is_wrong(edit, message, tmp_path):
    path = tmp_path / "board.toml"
    path.write_text(edit(dump_table(TARGETS[-1])))
    with pytest.raises(ConfigError, match=message) as caught:
        load_table(path)
    assert str(path) in str(caught.value)


def test_a_missing_table_is_named():
    with pytest.raises(ConfigError, match=r"cost table gone\.toml: No such file"):
        find_target("gone.toml", frozenset())


def test_the_error_of_a_fit_is_kept(tmp_path):
    rows = {key: replace(row, error=0.125) for key, row in TARGETS[0].rows.items()}
    path = tmp_path / "board.toml"
    path.write_text(dump_table(replace(TARGETS[0], rows=rows)))
    assert {row.error for row in load_table(path).rows.values()} == {0.125}


@pytest.mark.parametrize(
    ("features", "target", "want"),
    [
        ({"avx2"}, "arm64", Arithmetic.EXACT),
        ({"avx2"}, "x64-avx2", Arithmetic.STOCK),
        ({"avx2", "avx512_vnni"}, "arm64", Arithmetic.STOCK),
        ({"asimd"}, "arm64", Arithmetic.STOCK),
        ({"asimd"}, "x64-avx2", Arithmetic.STOCK),
    ],
)
def test_sums_are_those_of_the_target(features, target, want):
    assert arithmetic_of(find_target(target, frozenset()), frozenset(features)) is want
