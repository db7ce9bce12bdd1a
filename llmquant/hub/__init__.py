"""Publishing a result: which files go, the model card, and the upload in two steps."""
