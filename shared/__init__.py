"""What everyone speaks: contracts, pure logic and the adapters behind the ports. Imports nothing of ours."""
