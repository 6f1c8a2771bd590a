"""Who may use how much memory, and how much the process really uses."""
