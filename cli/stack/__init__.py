"""The commands that start the parts of Taskyard, and ask whether they are well."""
