"""A run's folder in a bucket of Google Cloud Storage."""
