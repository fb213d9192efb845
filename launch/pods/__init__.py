"""TPU machines of Google Cloud: made, used and deleted through `gcloud`."""
