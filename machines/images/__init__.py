"""Guest images: what they hold, how they are made, and where they are kept."""
