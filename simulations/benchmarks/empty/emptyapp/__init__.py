"""Empty Flower app: Flower's own strategy, clients with TensorFlow that train nothing, and arrays on the wire."""
