"""What the kernels compute: ops with a plain definition each; no device is known here."""
