"""What a solve costs beside f: its fixed part, constant steps on small states, Python calls."""
