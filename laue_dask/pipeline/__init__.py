"""The stages of a run in their order: what each was made from, what is kept, and the record of what was done."""
