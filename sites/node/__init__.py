"""The SuperNode of a site: its connection to the coordinator, app bundles, launcher and checks."""
