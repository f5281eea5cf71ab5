# SPDX-License-Identifier: Apache-2.0
"""Type-check the package as a wheel would lay it out: passes/ and kernels/ inside qhyvit_onnx/.

mypy follows neither ``package_dir`` nor an import hook, and run in a checkout it reports success
while skipping passes/ and kernels/. So build/typecheck/qhyvit_onnx holds links to the real files,
mypy reads that, and the number of files it says it read is compared with the number there are.
Needs mypy and the dependencies, not an installed qhyvit_onnx.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VIEW = Path("build/typecheck/qhyvit_onnx")
NESTED = ("passes", "kernels")


def link_view(root: Path) -> Path:
    """Make the folder of links match the source tree; return it."""
    view = root / VIEW
    view.mkdir(parents=True, exist_ok=True)
    spine = (root / "qhyvit_onnx").iterdir()
    shown = [p for p in spine if p.suffix == ".py" or (p / "__init__.py").exists()]
    wanted = {p.name: p for p in (*shown, *(root / name for name in NESTED))}
    for link in view.iterdir():
        if link.name not in wanted or link.resolve() != wanted[link.name].resolve():
            link.unlink()
    for name, target in wanted.items():
        if not (view / name).is_symlink():
            (view / name).symlink_to(os.path.relpath(target, view))
    return view


def count_modules(view: Path) -> int:
    """Return how many Python files the view shows."""
    return sum(p.suffix == ".py" for entry in view.iterdir() for p in (entry, *entry.rglob("*")))


def real_paths(text: str) -> str:
    """Name the files in mypy's messages where they really lie."""
    nested = "|".join(NESTED)
    return re.sub(rf"{VIEW}/(?=({nested})/)", "", text).replace(str(VIEW), "qhyvit_onnx")


def main(options: list[str]) -> int:
    """Run mypy with ``options``; return its status, or 1 if it did not read every file."""
    view = link_view(ROOT)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "-p", "qhyvit_onnx", *options],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(view.parent.relative_to(ROOT))},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(real_paths(done.stdout), end="")
    read = re.search(r"(\d+) source files?", done.stdout)
    want = count_modules(view)
    if read and int(read[1]) != want:
        print(f"typecheck: mypy read {read[1]} of {want} files", file=sys.stderr)
        return 1
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
