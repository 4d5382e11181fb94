"""Who may call the server, and its gRPC services: members, tokens, certificates, submissions."""
