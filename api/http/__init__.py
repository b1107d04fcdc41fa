"""What holds for HTTP whoever speaks it: origins, rates, sizes, ranges, downloads, metrics, the server itself."""
