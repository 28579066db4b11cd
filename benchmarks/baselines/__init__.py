"""Methods that MAGE is compared with, one short file each."""
