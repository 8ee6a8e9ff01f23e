"""`python -m kvscope` is `kvscope`."""

from __future__ import annotations

import sys

from kvscope.cli import main

sys.exit(main())
