"""What an encoder is worth: one protocol a file, each from features and labels to figures."""
