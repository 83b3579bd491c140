"""Where images come from: files, folders, lists, tars, parquet, remote paths."""
