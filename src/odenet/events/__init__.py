"""Events: conditions that end a solve or change its state; where they lie, and the gradients of their times."""
