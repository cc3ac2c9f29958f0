"""Tables: text, dates, gaps and numbers in, labels and quantities out."""
