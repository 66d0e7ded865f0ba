"""A beamtime each night: finds scans, runs what is new or changed, and says what became of every one of them."""
