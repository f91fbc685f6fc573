"""The test kit; never imported by production."""
