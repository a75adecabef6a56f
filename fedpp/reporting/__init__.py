"""Reports: the record of a run as JSON, charts and one HTML page."""
