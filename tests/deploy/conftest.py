"""Makes `deploy_files` and `podman_stack` importable."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
