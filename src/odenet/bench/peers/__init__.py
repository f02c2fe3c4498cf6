"""`odenet bench peers`: the library side by side with others, from the same weights."""
