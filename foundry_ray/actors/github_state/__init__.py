"""Mirror of one organization's GitHub; the only caller of its API (S19)."""
