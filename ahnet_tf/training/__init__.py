"""Training of one network under a tf.distribute strategy."""
