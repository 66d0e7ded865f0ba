"""What every command needs around its work: signals, threads, late imports, progress and printing."""
