"""``python -m mage_agent --help``."""

from mage_agent.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
