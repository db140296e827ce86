"""The programs: each parses flags, calls the library once and writes files."""
