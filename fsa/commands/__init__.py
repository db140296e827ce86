"""The commands of `fsa`: each parses flags, calls the library once and writes files."""
