"""The commands `sandbox task`."""
