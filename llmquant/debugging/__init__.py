"""Where it hurts: the health of a quantized folder by itself, and what each of its modules costs against a baseline."""
