"""Training and the command line. Needs the extra `train`; nothing else imports this package."""
