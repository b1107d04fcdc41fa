"""The bucket: its layout, the run log, artifacts and final records."""
