"""What makes two encoders equal."""
