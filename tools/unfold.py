"""Writes each entry of params.yaml on one line again, after `dvc exp run --set-param` folded some.

    python -m tools.unfold

DVC breaks lines after 80 characters when it writes the file. Entries on one line each are easier to
merge. A hook does this before commits.
"""

import argparse

from stages.shared import params
from stages.shared.stage import outputs, run
from tools import node


def main() -> None:
    argparse.ArgumentParser(description="Undo what DVC folded in params.yaml.").parse_args()
    params.load()
    with outputs(params.PATH) as (partial,):
        partial.write_bytes(params.PATH.read_bytes())
        node.change(partial, {})


if __name__ == "__main__":
    run(main)
