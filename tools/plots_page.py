"""The page on which `dvc plots` draws, with Vega inside: DVC's own loads it from the network.

    python -m tools.plots_page        # what `make setup` does

The page lies in `.dvc/`, ignored by git, and is named in `.dvc/config.local`.
"""

import argparse
import functools
from pathlib import Path

from stages.shared.stage import StageError, outputs
from tools.command import run
from tools.pipeline import opened

PAGE = Path(".dvc/plots_page.html")
VEGA_LITE = "6.4"  # draws what is written for 5 as well, as DVC's templates are
HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>DVC plots</title>
{refresh_tag}
<style>
body { font-family: system-ui, sans-serif; margin: 1.5rem; }
img { max-width: 100%; }
</style>
<script>{script}</script>
</head>
<body>
{plot_divs}
</body>
</html>
"""


def main() -> None:
    argparse.ArgumentParser(description="Make `dvc plots` work offline.").parse_args()
    if not PAGE.parent.is_dir():
        raise StageError("There is no .dvc here. Run from the project's root folder.")
    with opened() as repo, outputs(PAGE) as (partial,), repo.config.edit("local") as config:
        partial.write_text(HTML.replace("{script}", vega_script()), encoding="utf-8")
        config.setdefault("plots", {})["html_template"] = PAGE.name
    print(f"`dvc plots` now works offline, with {PAGE}")


@functools.cache
def vega_script() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets `vegaEmbed`."""
    import vl_convert

    script: str = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE
    )
    return script.replace("</script", "<\\/script")


if __name__ == "__main__":
    run(main)
