"""The reference training loop."""
