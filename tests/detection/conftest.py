"""Networks that several of these tests share."""

import sys
from pathlib import Path

# The tests are no packages, so what several of them share is found as a module beside them.
sys.path.insert(0, str(Path(__file__).parent))
