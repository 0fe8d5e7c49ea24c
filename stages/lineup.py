"""Stage lineup: which variants each dataset has.

The figures of a dataset must follow its variants as they are added and removed, and no others.
DVC cannot watch the names alone under `variants`, so this stage copies them, one small file per
dataset: it reruns when any variant changes, and a dataset's figures only when its own file does.
"""

import json
from pathlib import Path

from stages.shared import params
from stages.shared.stage import argument_parser, outputs, run


def main() -> None:
    parser = argument_parser("List the variants of each dataset.")
    parser.add_argument("--out", type=Path, required=True, help="out: a folder of JSON files")
    args = parser.parse_args()

    variants = params.load().variants
    names: dict[str, list[str]] = {variant.dataset: [] for variant in variants.values()}
    for name in sorted(variants):
        names[variants[name].dataset].append(name)
    with outputs(args.out) as (partial,):
        partial.mkdir()
        for dataset, members in names.items():
            (partial / f"{dataset}.json").write_text(json.dumps(members, indent=1) + "\n")
    print("lineup: " + ", ".join(f"{len(names[d])} variants on {d}" for d in sorted(names)))


if __name__ == "__main__":
    run(main)
