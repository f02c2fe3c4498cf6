"""What the task `series` trains on and with: data, models, scores, figures."""
