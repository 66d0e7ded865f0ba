"""Everything that makes weights."""
