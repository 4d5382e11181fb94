"""Early exits in detail: errors against depth for every criterion, transcripts at each exit, by a monitor."""
