"""Networks and what they return."""
