"""What API servers and the services of VM hosts say to one another: tokens, paths, headers and messages."""
