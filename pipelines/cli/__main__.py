"""``python -m streamfold.pipelines.cli``: the command ``streamfold`` where its script is not on the path."""

import sys

from streamfold.pipelines.cli import main

sys.exit(main())
