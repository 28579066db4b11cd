"""What is measured and with which data; uses public names of ``mage_agent`` only."""
