# SPDX-License-Identifier: Apache-2.0
"""The size budget bites: at the limit nothing is said, one line more is reported."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def size():
    spec = spec_from_file_location("size", ROOT / "tools/size.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def function(lines, head="def long():"):
    """Return the source of one function that is ``lines`` long."""
    return head + "\n    x = 1" * (lines - 1) + "\n"


def test_the_budget_is_the_agreed_one(size):
    assert (size.FILE_LINES, size.FUNCTION_LINES) == (300, 40)


@pytest.mark.parametrize(("lines", "over"), [(300, []), (301, ["x.py: 301 lines, budget 300"])])
def test_a_long_file_is_reported(size, lines, over):
    assert list(size.oversized("x = 1\n" * lines, "x.py")) == over


@pytest.mark.parametrize("head", ["def long():", "async def long():", "@cache\ndef long():"])
def test_a_long_function_is_reported(size, head):
    decorated = head.count("\n")
    assert list(size.oversized(function(40, head), "x.py")) == []
    said = f"x.py:{1 + decorated}: long 41 lines, budget 40"
    assert list(size.oversized(function(41, head), "x.py")) == [said]


def test_a_long_method_is_reported(size):
    body = "".join(f"    {line}\n" for line in function(41).splitlines())
    assert list(size.oversized("class A:\n" + body, "x.py")) == ["x.py:2: long 41 lines, budget 40"]


@pytest.mark.parametrize("folder", ["qhyvit_onnx", "passes", "kernels", "tools"])
def test_every_source_folder_is_held_to_it(size, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(size, "ROOT", tmp_path)
    (tmp_path / folder / "deep").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_free.py").write_text(function(500))
    assert size.main() == 0
    (tmp_path / folder / "deep" / "big.py").write_text(function(41))
    assert size.main() == 1
    assert f"{folder}/deep/big.py:1: long 41 lines" in capsys.readouterr().out


def test_the_tree_is_within_budget(size, capsys):
    assert size.main() == 0, capsys.readouterr().out
