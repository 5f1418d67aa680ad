"""Reading models tensor by tensor, a piece at a time: one interface, a file for each format."""
