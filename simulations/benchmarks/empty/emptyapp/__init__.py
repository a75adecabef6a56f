"""A Flower app that learns nothing: Flower's own strategy, TensorFlow at the clients, and arrays on the wire."""
