"""The coreset: candidates → merge → rounds, pure NumPy; `distributed` runs them on Ray."""
