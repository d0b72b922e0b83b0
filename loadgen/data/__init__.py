"""Files that come with the load generator; README.md says what they are, whence, and under which licence."""
