"""Who is in the run and who does what: membership, views, units, the bag, dealing."""
