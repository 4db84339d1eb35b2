"""How replicas stay in step: one file a strategy."""
