"""Methods that MAGE is compared with, one short file each."""

from typing import Any

BASELINES: dict[str, Any] = {}
