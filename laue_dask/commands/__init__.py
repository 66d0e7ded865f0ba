"""The command line: each module parses the options of its commands, calls the package, and prints."""
