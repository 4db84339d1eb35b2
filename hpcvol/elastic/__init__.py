"""Who is in the run and who does what: units, the bag, dealing, commit."""
