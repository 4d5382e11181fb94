"""Every client is as likely as any other."""
