"""What a run leaves: read from its disk, selected, and stored in the bucket."""
