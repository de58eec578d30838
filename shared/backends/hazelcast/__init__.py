"""The registry of the distributed profile, on Hazelcast."""
