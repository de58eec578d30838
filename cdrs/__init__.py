"""The CDRS node: takes events into the log, judges what the log holds, feeds gateways."""
