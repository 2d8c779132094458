"""Pictures and HTML pages of predictions and their scores."""
