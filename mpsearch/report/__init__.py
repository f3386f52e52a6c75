"""Results for people: a page that opens without a network, its figures, and plain tables."""
