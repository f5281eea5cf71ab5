# SPDX-License-Identifier: Apache-2.0
"""Q-HyViT stage by stage: scale only, then granularity, then scheme, in the paper's order.

usage: python tools/bench_ablation.py --cifar DIR [--extra MODEL.onnx ...] [--models NAME ...]
    [--precisions w8a8 w6a6] [--samples 64] [--draws 1] [--target arm64] [--save FILE.json]

Options as of ``tools/bench_accuracy.py``, whose trials these are. Every stage adds one freedom to
the search and leaves the rest alone; "as in the paper" says whether each stage has a better SQNR
than the one before, on test images and, "own", on the images it was calibrated with: what holds on
those alone has been fitted to them. The float model is measured in the same run.
"""

from collections import defaultdict
from collections.abc import Mapping
from statistics import mean

from _bench import Rows, table
from bench_accuracy import measure, parser, publish

STAGES = {
    "q-hyvit:scale": "scale only",
    "q-hyvit:granularity": "+ granularity",
    "q-hyvit": "+ scheme",
}


def main() -> None:
    """Measure what is missing, print and keep everything."""
    options = parser(__doc__)
    options.set_defaults(recipes=list(STAGES), precisions=["w8a8", "w6a6"])
    args = options.parse_args()
    publish(table(ablation(measure(args))), args.save)


def ablation(rows: Rows) -> Rows:
    """Return one line a model and precision: SQNR and top-1 of each stage, means over draws."""
    groups: dict[tuple[str, str], dict[str, Rows]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["precision"], row["model"]][row["recipe"]].append(row)
    lines = []
    for (precision, model), stages in groups.items():
        first = next(iter(stages.values()))[0]
        line = {"model": model, "precision": precision}
        line["float top-1"] = _percent(first["float top-1"])
        for name, title in STAGES.items():
            if name in stages:
                line[title] = f"{_decibels(stages[name], 'sqnr_db'):.1f} dB"
                line[f"{title}, own"] = f"{_decibels(stages[name], 'own_sqnr_db'):.1f} dB"
                line[f"{title}, top-1"] = _percent(*(row["top-1"] for row in stages[name]))
        line["as in the paper"] = _ordered(stages, "sqnr_db")
        line["own as in the paper"] = _ordered(stages, "own_sqnr_db")
        lines.append(line)
    return lines


def _ordered(stages: Mapping[str, Rows], figure: str) -> str:
    """Tell whether every stage is better than the one before."""
    found = [_decibels(stages[name], figure) for name in STAGES if name in stages]
    return "yes" if found == sorted(set(found)) else "no"


def _decibels(rows: Rows, figure: str) -> float:
    return mean(row[figure] for row in rows)


def _percent(*shares: float | None) -> str:
    known = [share for share in shares if share is not None]
    return f"{100 * mean(known):.2f}" if known else "-"


if __name__ == "__main__":
    main()
