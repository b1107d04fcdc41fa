"""The one stand-in of the project: a model that plays scenario files instead of thinking."""
