"""Job scripts that a user submits as they are."""
