"""What people and MLflow see of a run while it goes on."""
