"""Writes each entry of params.yaml on one line again, after `dvc exp run --set-param` folded some.

    python -m tools.unfold

DVC breaks lines after 80 characters when it writes the file. Entries on one line each are easier to
merge. A hook does this before commits.
"""

import argparse
import re
from collections import Counter

from stages.shared import params
from stages.shared.stage import StageError, outputs
from tools import node
from tools.command import run

COMMENT = re.compile(r"(?:^|\s)(#.*)", re.MULTILINE)


def main() -> None:
    argparse.ArgumentParser(description="Undo what DVC folded in params.yaml.").parse_args()
    params.load()
    with outputs(params.PATH) as (partial,):
        partial.write_bytes(params.PATH.read_bytes())
        node.change(partial, {})
        before, after = (
            Counter(COMMENT.findall(path.read_text())) for path in (params.PATH, partial)
        )
        if lost := before - after:
            raise StageError(
                "A comment within braces or brackets would be lost: put it above the entry, on a "
                f"line of its own. Received: '{next(iter(lost)).strip()}'."
            )


if __name__ == "__main__":
    run(main)
