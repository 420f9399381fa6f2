"""SQL statements and business rules. This layer does not depend on HTTP."""
