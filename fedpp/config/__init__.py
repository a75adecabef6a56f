"""Configuration: typed settings of a run, a model and a site, each parsed once."""
