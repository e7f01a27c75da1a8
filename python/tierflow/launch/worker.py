"""What a worker's process runs: it takes up its line, then becomes the script."""

from __future__ import annotations

import os
import runpy
import sys

from ..distributed import current_group


def main() -> None:
    """`worker script|module TARGET ARGUMENTS…`"""
    kind, target, *arguments = sys.argv[1:]
    # From here on, the worker ends with its launcher.
    current_group()
    sys.argv = [target, *arguments]
    if kind == "module":
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(target))
        runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    main()
