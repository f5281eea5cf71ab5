# SPDX-License-Identifier: Apache-2.0
"""Hold the source to its size budget: lines a file, lines a function; tests are exempt.

A function is counted from its ``def`` to its last line, docstring included, decorators not.
Prints one line an offender and exits 1 if there is one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("qhyvit_onnx", "passes", "kernels", "tools")
FILE_LINES = 300
FUNCTION_LINES = 40


def oversized(source: str, where: str) -> Iterator[str]:
    """Yield one line for the file if it is over budget, then one for each such function."""
    lines = len(source.splitlines())
    if lines > FILE_LINES:
        yield f"{where}: {lines} lines, budget {FILE_LINES}"
    for node in ast.walk(ast.parse(source, where)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield f"{where}:{node.lineno}: {node.name} {lines} lines, budget {FUNCTION_LINES}"


def main() -> int:
    """Return 1 if any file or function is over budget."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    found = [
        line
        for path in paths
        for line in oversized(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    print(*found, f"size: {len(paths)} files, {len(found)} over budget", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
