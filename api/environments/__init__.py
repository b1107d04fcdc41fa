"""The core of sandbox environments: variables that runs get as secrets, and what their machines may reach."""
