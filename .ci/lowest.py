"""Print the lower bounds of the requirements in pyproject.toml as constraints for pip."""

import re
import sys
from itertools import chain
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    from pip._vendor import tomli as tomllib


def main(path: str) -> None:
    """Print one line for each requirement with a lower bound; tools that check the source keep their own versions."""
    project = tomllib.loads(Path(path).read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tested = [extras[name] for name in ("train", "anndata", "parquet", "wsi", "test")]
    for requirement in chain(project["dependencies"], *tested):
        bound = re.match(r"([\w-]+)>=([\w.]+)", requirement)
        if bound and bound[1] != "triton":  # torch brings the version of triton that it needs
            print(f"{bound[1]}=={bound[2]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
