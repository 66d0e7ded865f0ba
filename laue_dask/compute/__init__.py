"""Where work runs: local workers, jobs of batch systems, memory, and the only place that submits block work."""
