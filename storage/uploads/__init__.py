"""Artifacts that clients upload: the forms of the bucket, and the manifest that many servers add to at once."""
