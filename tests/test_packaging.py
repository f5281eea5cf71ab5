# SPDX-License-Identifier: Apache-2.0
"""What is shipped: setup.cfg against the tree, the pins against setup.cfg, the type-check view."""

import configparser
import re
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import qhyvit_onnx

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "qhyvit_onnx": "qhyvit_onnx",
    "qhyvit_onnx.passes": "passes",
    "qhyvit_onnx.kernels": "kernels",
}


def setup_cfg():
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg", encoding="utf-8")
    return cfg


def folder_of(package):
    """Return where the source of a package lies, by the map in setup.cfg."""
    return ROOT / FOLDERS.get(package, package.replace(".", "/"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    lines = (ROOT / "tools/constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_setup_cfg_lists_every_package():
    listed = setup_cfg()["options"]["packages"].split()
    found = {
        ".".join([package, *init.parent.relative_to(ROOT / folder).parts])
        for package, folder in FOLDERS.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(listed) == sorted(found)


def test_setup_cfg_maps_every_folder():
    lines = setup_cfg()["options"]["package_dir"].split("\n")
    assert dict(re.split(r"\s*=\s*", line) for line in lines if line) == FOLDERS


def test_every_source_folder_is_a_package():
    for folder in FOLDERS.values():
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), path


def test_package_data_is_what_lies_there():
    patterns = setup_cfg()["options.package_data"]
    shipped = set()
    for package, globs in patterns.items():
        for pattern in globs.split():
            found = set(folder_of(package).glob(pattern))
            assert found, f"{package}: nothing matches {pattern}"
            shipped |= found
    there = {
        path
        for folder in FOLDERS.values()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert there == shipped


def test_the_entry_point_can_be_called():
    lines = setup_cfg()["options.entry_points"]["console_scripts"].split("\n")
    (script,) = [line for line in lines if line]
    command, module, function = re.fullmatch(r"([\w-]+) = ([\w.]+):(\w+)", script).groups()
    assert command == "qhv-onnx"
    assert callable(getattr(import_module(module), function))


def test_the_version_is_in_the_package_and_on_top_of_the_changelog():
    assert setup_cfg()["metadata"]["version"] == "attr: qhyvit_onnx.__version__"
    assert re.fullmatch(r"\d+\.\d+\.\d+", qhyvit_onnx.__version__)
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changelog, re.M)[1] == qhyvit_onnx.__version__


def test_the_files_setup_cfg_names_exist():
    metadata = setup_cfg()["metadata"]
    named = metadata["license_files"].split()
    named.append(metadata["long_description"].removeprefix("file: "))
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_constraints_are_plain_pins_each_once():
    assert [line for line in pins() if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    names = [normal(line.split("==")[0]) for line in pins()]
    assert len(set(names)) == len(names)


def test_every_direct_dependency_is_pinned():
    cfg = setup_cfg()
    lists = [cfg["options"]["install_requires"], *cfg["options.extras_require"].values()]
    asked = {re.match(r"[\w.-]+", line)[0] for text in lists for line in text.split("\n") if line}
    pinned = {normal(line.split("==")[0]) for line in pins()}
    assert {normal(name) for name in asked} - pinned == set()


def test_torch_is_no_core_dependency():
    assert "torch" not in setup_cfg()["options"]["install_requires"]


def test_the_type_checker_is_shown_every_module(tmp_path):
    spec = spec_from_file_location("typecheck", ROOT / "tools/typecheck.py")
    typecheck = module_from_spec(spec)
    spec.loader.exec_module(typecheck)
    for name in ("qhyvit_onnx/sub", "qhyvit_onnx/assets", "passes", "kernels"):
        (tmp_path / name).mkdir(parents=True)
    for package in ("qhyvit_onnx", "qhyvit_onnx/sub", "passes", "kernels"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "passes" / "place.py").touch()
    gone = tmp_path / "qhyvit_onnx" / "gone.py"
    gone.touch()
    assert typecheck.count_modules(typecheck.link_view(tmp_path)) == 6
    gone.unlink()
    view = typecheck.link_view(tmp_path)
    assert typecheck.count_modules(view) == 5
    assert (view / "passes" / "place.py").samefile(tmp_path / "passes" / "place.py")
