"""What an operator and a manifest say of git servers."""
