"""The networks of MAGE; they see tensors in normalised units only."""
