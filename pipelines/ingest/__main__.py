"""``python -m streamfold.pipelines.ingest --config streamfold.toml [--share 0/2]``: one ingest process."""

from __future__ import annotations

import argparse
import sys

from streamfold.core.errors import ConfigError
from streamfold.core.settings import load_settings
from streamfold.pipelines.ingest import Share, run
from streamfold.pipelines.serve.logs import configure_logs


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m streamfold.pipelines.ingest", description=__doc__)
    parser.add_argument("--config", help="settings file (default: streamfold.toml)")
    parser.add_argument("--share", type=Share.parse, default=Share(), help="take the partitions i of n, as in 0/2")
    options = parser.parse_args(argv)
    try:
        settings = load_settings(options.config)
        configure_logs(settings.log)
        run(settings, share=options.share)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
