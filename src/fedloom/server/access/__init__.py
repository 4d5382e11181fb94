"""Access control and gRPC services of the server: members, tokens, certificates, submissions."""
