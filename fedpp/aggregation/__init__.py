"""The domain mask: updates as whole numbers, and the keystreams under which they add up unseen."""
