"""The command lines: flags in, one library call, files out."""
