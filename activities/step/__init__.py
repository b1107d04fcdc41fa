"""What all steps share: the boundary of their errors, heartbeats, and announcements in the run's log."""
