"""The ServerApp: admission of sites, rounds, aggregation and run state."""
