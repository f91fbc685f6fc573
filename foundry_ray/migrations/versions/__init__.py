"""The migrations, in the order of their numbers; written once, never edited after release."""
