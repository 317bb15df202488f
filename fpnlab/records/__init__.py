"""Files that are written and read back, as typed values: one reader and one writer each."""
