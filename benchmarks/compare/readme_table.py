"""Print the README's tables from the file of a comparison: `PYTHONPATH=src:benchmarks python -m compare.readme_table results.json`."""

import sys
from pathlib import Path

from compare.report import readme_markdown
from compare.results import load


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(readme_markdown(load(Path(sys.argv[1]))), end="")


if __name__ == "__main__":
    main()
