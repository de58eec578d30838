"""``python -m ops.engines``; people call ``scripts/engines``."""

import sys

from ops.engines.cli import main

sys.exit(main())
