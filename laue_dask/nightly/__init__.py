"""The nightly batch: it finds the scans of a beamtime, runs what is new or changed, and says what became of each."""
