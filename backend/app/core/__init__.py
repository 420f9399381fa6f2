"""What every layer stands on: settings, the database, errors, logging."""
