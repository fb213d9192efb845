"""What a run needs and takes on machines that are not here."""
