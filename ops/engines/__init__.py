"""Real engines for development and tests: three Kafka brokers, three Hazelcast members, a MongoDB replica set of three.

They run as processes on loopback. Standard library only: it works before any virtual environment exists. Start with
`scripts/engines --help`."""
