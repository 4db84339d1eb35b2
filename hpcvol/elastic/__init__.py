"""Who is in the run and who does what: membership, views, dealing of units, commit, ledger."""
