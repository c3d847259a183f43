"""What a person looks at while a job runs and afterwards: progress, files, tables, plots."""
