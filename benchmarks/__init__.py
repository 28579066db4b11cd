"""What is measured and with which data; uses public names of ``mage_agent`` only."""

from farama_notifications import notifications

# Printed at every import of gymnasium-robotics, about Adroit's rewards, in the midst of our output;
# the report says the same under "What differs from the originals".
notifications.pop("gymnasium_robotics", None)
