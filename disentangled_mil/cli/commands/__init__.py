"""One file for each command: its help, its options, and the call."""
